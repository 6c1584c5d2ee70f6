// The difference of two runs through the modules of one step: a dot an observation, over the line that rounding explains.
// Of a large model only the rows that tell come in; each has its number among all, and stands where it ran.
{
  const HEIGHT = 240;
  const LEFT = 62;
  const CLASSES = { w: "within", i: "inherited", b: "born" };
  const WORDS = { within: "within rounding", inherited: "inherited", born: "born here" };

  const rowsOf = (depth) => depth.at.map((at, i) => ({
    at, place: depth.place[i], phase: depth.phases[depth.phase[i]], verdict: CLASSES[depth.verdict[i]],
    rms_a: nh.value(depth.rms_a[i]), rms_b: nh.value(depth.rms_b[i]), apart: nh.value(depth.apart[i]), bound: nh.value(depth.bound[i]),
  }));

  // The powers of ten at both ends, and from label to label; both ends have one.
  const scaleOf = (rows) => {
    const sizes = rows.flatMap((row) => [row.apart, row.bound]).filter((size) => size > 0 && Number.isFinite(size));
    const [smallest, largest] = nh.ends(sizes);
    // below a hundredth of an ulp of fp32 nothing is told apart: a difference of nothing lies on the floor
    const least = Math.floor(Math.log10(Math.min(smallest, 1e-6)));
    const high = Math.ceil(Math.log10(Math.max(largest, 10 ** (least + 1))));
    const stride = Math.max(1, Math.ceil((high - least) / 6));
    return { high, stride, low: high - stride * Math.ceil((high - least) / stride) };
  };

  const gridOf = ({ low, high, stride }, down, width) => {
    const grid = [];
    for (let power = low; power <= high; power += stride) {
      const y = down(10 ** power);
      grid.push(nh.svg("line", { class: "grid", x1: LEFT, x2: width - 12, y1: y, y2: y }));
      grid.push(nh.svg("text", { class: "tick", x: LEFT - 8, y: y + 4 }, nh.number(10 ** power)));
    }
    return grid;
  };

  const phasesOf = (rows, across, width) => {
    const starts = rows.filter((row, i) => i === 0 || rows[i - 1].phase !== row.phase);
    // a short phase, as the batch's, leaves its name no room
    const named = starts.filter((row, i) => (i + 1 < starts.length ? across(starts[i + 1]) : width) - across(row) > 56);
    return named.map((row) => nh.svg("text", { class: "phase", x: across(row), y: HEIGHT - 6 }, row.phase));
  };

  const dotsOf = (rows, across, down) => {
    const dots = rows.map((row) => (row.verdict === "born"
      ? nh.svg("path", { class: "born", d: `M${across(row) - 5} ${down(row.apart) - 5}l10 10m0-10l-10 10` })
      : nh.svg("circle", { class: row.verdict, cx: across(row), cy: down(row.apart), r: 2.5 })));
    // the births last, so that no ring hides one
    return dots.sort((a, b) => a.classList.contains("born") - b.classList.contains("born"));
  };

  nh.depth = (report, host) => {
    const rows = rowsOf(report.depth);
    const scale = scaleOf(rows);
    const { low, high } = scale;
    const reading = nh.html("output", { class: "reading", id: "depth-reading" });
    const frame = nh.html("div", { class: "depth", tabindex: "0", role: "group", "aria-label": "Difference by depth; arrow keys move" });
    const born = rows.findIndex((row) => row.verdict === "born");
    let at = born < 0 ? 0 : born;
    let cursor = null;
    let across = () => 0;

    // what is not finite is further apart than all that is: it lies at the top
    const down = (size) => {
      const power = Number.isFinite(size) ? Math.max(Math.log10(size > 0 ? size : 0), low) : high;
      return 8 + (HEIGHT - 30) * (1 - (power - low) / (high - low));
    };
    const show = (index) => {
      at = Math.min(Math.max(index, 0), rows.length - 1);
      const row = rows[at];
      reading.textContent = `${row.place} · ${row.phase} · rms ${nh.number(row.rms_a)} against ${nh.number(row.rms_b)} · apart ${nh.number(row.apart)}, rounding explains ${nh.number(row.bound)} · ${WORDS[row.verdict]}`;
      cursor?.setAttribute("d", `M${across(row)} 4V${HEIGHT - 20}M${across(row) - 8} ${down(row.apart)}a8 8 0 1 0 16 0a8 8 0 1 0 -16 0`);
    };

    const draw = () => {
      const width = Math.max(frame.clientWidth, 200);
      across = (row) => LEFT + ((width - LEFT - 12) * (row.at + 0.5)) / report.depth.of;
      const bound = nh.svg("polyline", { class: "bound", points: rows.filter((row) => Number.isFinite(row.bound)).map((row) => `${across(row).toFixed(1)},${down(row.bound).toFixed(1)}`).join(" ") });
      cursor = nh.svg("path", { class: "cursor" });
      frame.replaceChildren(nh.svg("svg", { width, height: HEIGHT, "aria-hidden": "true" }, ...gridOf(scale, down, width), ...phasesOf(rows, across, width), bound, ...dotsOf(rows, across, down), cursor));
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
      // by the column first: several rows of a large model share one, and there the height decides
      const away = (row) => Math.hypot(across(row) - (event.clientX - box.left), 0.02 * (down(row.apart) - (event.clientY - box.top)));
      const distances = rows.map(away);
      show(distances.indexOf(distances.reduce((least, distance) => Math.min(least, distance))));
    };
    frame.addEventListener("pointermove", point);
    frame.addEventListener("click", point);
    host.append(frame, reading);
    nh.redrawn(draw);
  };
}
