// Read the page's data blocks, draw what there is to draw, and draw it again where width, theme or paper changes.
{
  const data = (id) => document.getElementById(id).textContent;

  const start = async () => {
    const report = JSON.parse(data("report"));
    const place = (id) => document.getElementById(id);
    await nh.attempt(place("curves"), "The curves", (host) => nh.timeline(report, host));
    await nh.attempt(place("depth"), "The difference by depth", (host) => nh.depth(report, host));
    await nh.attempt(place("heat"), "The heat map", async (host) => {
      if (!data("series").trim()) return;
      const block = await nh.openBlock(data("series"));
      const show = nh.tensorPanel(report, block, place("tensor"));
      const open = (...cell) => nh.attempt(place("tensor"), "The tensor", () => show(...cell));
      nh.heatMap(report, block, host, open);
    });
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
