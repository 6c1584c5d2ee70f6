// Read the page's data blocks, draw what there is to draw, and draw it again where width, theme or paper changes.
{
  const data = (id) => document.getElementById(id).textContent;

  const start = async () => {
    const report = JSON.parse(data("report"));
    const curves = document.getElementById("curves");
    if (curves) nh.timeline(report, curves);
    const depth = document.getElementById("depth");
    if (depth) nh.depth(report, depth);
    const heat = document.getElementById("heat");
    if (heat && data("series").trim()) {
      const block = await nh.openBlock(data("series"));
      const open = nh.tensorPanel(report, block, document.getElementById("tensor"));
      nh.heatMap(report, block, heat, open);
    }
    document.documentElement.dataset.drawn = "true";
  };

  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    nh.redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => nh.redraw());

  // Paper is white, and has nothing that opens on a click.
  let closed = [];
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("paper");
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((details) => (details.open = true));
    nh.redraw();
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("paper");
    closed.forEach((details) => (details.open = false));
    nh.redraw();
  });

  start();
}
