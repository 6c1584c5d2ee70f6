// The difference of two runs through the modules of one step: a dot an observation, over the line that rounding explains.
{
  const HEIGHT = 240;
  const LEFT = 62;
  const WORDS = { within: "within rounding", inherited: "inherited", born: "born here" };

  nh.depth = (report, host) => {
    const rows = report.rows;
    const sizes = rows.flatMap((row) => [row.apart, row.bound]).filter((size) => size > 0);
    // below a hundredth of an ulp of fp32 nothing is told apart: a difference of nothing lies on the floor
    const low = Math.floor(Math.log10(Math.min(...sizes, 1e-6)));
    const high = Math.ceil(Math.log10(Math.max(...sizes, 10 ** (low + 1))));
    const reading = nh.html("output", { class: "reading", id: "depth-reading" });
    const frame = nh.html("div", { class: "depth", tabindex: "0", role: "group", "aria-label": "Difference by depth; arrow keys move" });
    const born = rows.findIndex((row) => row.verdict === "born");
    let at = born < 0 ? 0 : born;
    let cursor = null;
    let across = () => 0;

    const down = (size) => 8 + (HEIGHT - 30) * (1 - (Math.max(Math.log10(size > 0 ? size : 0), low) - low) / (high - low));
    const show = (index) => {
      at = Math.min(Math.max(index, 0), rows.length - 1);
      const row = rows[at];
      reading.textContent = `${row.place} · ${row.phase} · rms ${nh.number(row.rms_a)} against ${nh.number(row.rms_b)} · apart ${nh.number(row.apart)}, rounding explains ${nh.number(row.bound)} · ${WORDS[row.verdict]}`;
      cursor?.setAttribute("x1", across(at));
      cursor?.setAttribute("x2", across(at));
    };

    const draw = () => {
      const width = Math.max(frame.clientWidth, 200);
      across = (index) => LEFT + ((width - LEFT - 12) * (index + 0.5)) / rows.length;
      const grid = [];
      for (let power = low; power <= high; power += Math.max(1, Math.ceil((high - low) / 6))) {
        const y = down(10 ** power);
        grid.push(nh.svg("line", { class: "grid", x1: LEFT, x2: width - 12, y1: y, y2: y }));
        grid.push(nh.svg("text", { class: "tick", x: LEFT - 8, y: y + 4 }, nh.number(10 ** power)));
      }
      const starts = rows.map((row, i) => i).filter((i) => i === 0 || rows[i - 1].phase !== rows[i].phase);
      // a short phase, as the batch's, leaves its name no room
      const named = starts.filter((i, at) => at + 1 === starts.length || across(starts[at + 1]) - across(i) > 56);
      const phases = named.map((i) => nh.svg("text", { class: "phase", x: across(i), y: HEIGHT - 6 }, rows[i].phase));
      const bound = nh.svg("polyline", { class: "bound", points: rows.map((row, i) => `${across(i).toFixed(1)},${down(row.bound).toFixed(1)}`).join(" ") });
      const dots = rows.map((row, i) => (row.verdict === "born"
        ? nh.svg("path", { class: "born", d: `M${across(i) - 5} ${down(row.apart) - 5}l10 10m0-10l-10 10` })
        : nh.svg("circle", { class: row.verdict, cx: across(i), cy: down(row.apart), r: 2.5 })));
      cursor = nh.svg("line", { class: "cursor", y1: 4, y2: HEIGHT - 20 });
      frame.replaceChildren(nh.svg("svg", { width, height: HEIGHT, "aria-hidden": "true" }, ...grid, ...phases, bound, cursor, ...dots));
      show(at);
    };
    const keys = { ArrowLeft: () => at - 1, ArrowRight: () => at + 1, Home: () => 0, End: () => rows.length - 1 };
    frame.addEventListener("keydown", (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      show(keys[event.key]());
    });
    const point = (event) => {
      const box = frame.getBoundingClientRect();
      show(Math.floor(((event.clientX - box.left - LEFT) / (box.width - LEFT - 12)) * rows.length));
    };
    frame.addEventListener("pointermove", point);
    frame.addEventListener("click", point);
    host.append(frame, reading);
    nh.redrawn(draw);
  };
}
