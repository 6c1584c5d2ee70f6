// Tensors by steps: a map to look at, to move on by pointer or keys, and to open a tensor from.
{
  const ROLES = [
    ["output", "outputs"], ["grad_output", "output gradients"], ["weight", "weights"], ["grad", "weight gradients"],
    ["exp_avg_sq", "second moments"], ["update", "updates"],
  ];
  const BY_PHASE = { backward: "grad_output", unscale: "grad", clip: "grad", update: "weight" };
  const MOST_WIDE = 96;

  const columnOf = (block, step) => (step === null || step === undefined ? -1 : block.columns.findIndex(([first, last]) => first <= step && step <= last));

  // What is shown at first: the kind of tensor and of colour in which the onset is seen, at the onset.
  const opening = (report, block, roles, before) => {
    const isSpike = ["loss-spike", "divergence"].includes(report.onset?.kind);
    const asked = isSpike ? "update" : (BY_PHASE[report.onset?.phase] ?? "output");
    const onset = columnOf(block, report.onset?.step);
    return {
      role: roles.some(([role]) => role === asked) ? asked : roles[0][0], format: "", end: isSpike && before ? "growth" : "overflow",
      order: "run", row: 0, column: onset < 0 ? block.columns.length - 1 : onset,
    };
  };

  const nodes = () => ({
    key: nh.html("div"),
    axis: nh.html("div", { class: "axis" }),
    scroller: nh.html("div", {
      class: "cells", tabindex: "0", role: "application", "aria-roledescription": "heat map",
      "aria-label": "Tensors by steps. Arrow keys move, Enter opens a tensor.", "aria-describedby": "heat-reading",
    }),
    reading: nh.html("output", { class: "reading", id: "heat-reading", "aria-live": "polite" }),
    // two tones, of which one at least is seen on a cell of any colour
    cursor: nh.svg("g", { class: "cursor" }, nh.svg("rect", { class: "seam" }), nh.svg("rect", { class: "line" })),
  });

  const rangeOf = ({ report, state }, tensor) => report.ranges.find((range) => (state.format ? range.format === state.format : range.aliases.includes(tensor.dtype)));

  const arrange = (map) => {
    const { block, state, before } = map;
    map.rows = block.tensors.filter((tensor) => tensor.role === state.role);
    if (state.order !== "tight") return;
    const least = new Map(map.rows.map((tensor) => [tensor, nh.tightest(tensor, block.columns.length, rangeOf(map, tensor), state.end, before)]));
    map.rows = [...map.rows].sort((a, b) => least.get(a) - least.get(b));
  };

  const say = (map) => {
    const { state, left, width } = map;
    const tensor = map.rows[state.row];
    map.reading.textContent = nh.cellWords(tensor, state.column, { ...map, range: rangeOf(map, tensor), end: state.end }).join(" · ");
    const place = { x: left + state.column * width - 0.5, y: state.row * nh.ROW, width: Math.max(width, 3), height: nh.ROW };
    for (const rect of map.cursor.children) for (const [name, value] of Object.entries(place)) rect.setAttribute(name, value);
  };

  const select = (map, row, column, isKey) => {
    const { state, scroller } = map;
    state.row = Math.min(Math.max(row, 0), map.rows.length - 1);
    state.column = Math.min(Math.max(column, 0), map.block.columns.length - 1);
    if (isKey) {
      const top = state.row * nh.ROW;
      if (top < scroller.scrollTop) scroller.scrollTop = top;
      // into the middle: what is broken behind the first bad row is to be seen as well
      if (top + nh.ROW > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = top - scroller.clientHeight / 2;
    }
    say(map);
  };

  const axis = (map, whole) => {
    const { report, block, left, width, across, onset } = map;
    const every = Math.max(1, Math.ceil(56 / width));
    const ticks = block.columns.map(([first], i) => (i % every === 0 && Math.abs(i - onset) * width > 34 ? nh.svg("text", { x: across(i), y: 13 }, String(first)) : null));
    const text = `✗ ${report.onset?.step}`;
    return nh.svg(
      "svg", { width: whole, height: 18, "aria-hidden": "true" }, nh.svg("text", { x: 0, y: 13, class: "count" }, `${map.rows.length} tensors`),
      nh.svg("text", { x: left - 8, y: 13, class: "label" }, "step"), ...ticks,
      onset < 0 ? null : nh.svg("text", { x: Math.min(across(onset), whole - 5 * text.length), y: 13, class: "onset" }, text),
    );
  };

  const body = (map, whole) => {
    const { state, rows, left, width, across, lead } = map;
    const letters = Math.floor((left - 12) / 6.6);
    const height = rows.length * nh.ROW;
    const labels = rows.map((tensor, i) => nh.svg("text", { x: left - 8, y: i * nh.ROW + 12, class: "label" }, nh.brief(nh.place(tensor), letters), nh.svg("title", {}, nh.place(tensor))));
    const kindAt = (tensor, column) => nh.kindOf(tensor, column, rangeOf(map, tensor), state.end, map.before);
    return nh.svg(
      "svg", { width: whole, height, "aria-hidden": "true" }, ...labels,
      nh.svg("g", { transform: `translate(${left} 0)` }, ...nh.cells(rows, map.block.columns.length, width, kindAt)),
      ...(lead < 0 ? [] : nh.firstSign(across(lead), height)), map.cursor,
    );
  };

  const draw = (map) => {
    arrange(map);
    map.key.replaceChildren(nh.cellLegend(map.state.end, map.usually, map.lead >= 0));
    const whole = Math.max(map.scroller.clientWidth, 200);
    map.left = Math.min(Math.max(Math.round(whole * 0.26), 96), 280);
    map.width = Math.min((whole - map.left - 4) / map.block.columns.length, MOST_WIDE);
    map.across = (column) => map.left + (column + 0.5) * map.width;
    map.axis.replaceChildren(axis(map, whole));
    map.scroller.replaceChildren(body(map, whole));
    select(map, map.state.row, map.state.column, false);
  };

  // Another choice stays on the tensor, or on its module where the tensors themselves are others.
  const again = (map, change) => (value) => {
    const tensor = map.rows[map.state.row];
    map.state[change] = value;
    arrange(map);
    map.state.row = Math.max(map.rows.findIndex((row) => (change === "role" ? row.module === tensor.module : row === tensor)), 0);
    draw(map);
    select(map, map.state.row, map.state.column, true);
  };

  const controls = (map, roles) => {
    const formats = [["", "as run"], ...map.report.ranges.map((r) => [r.format, r.format.replace("e4m3fn", "e4m3")])];
    const ends = [["overflow", "room to overflow"], ["underflow", "to underflow"], ...(map.before ? [["growth", "growth"]] : [])];
    return nh.html("div", { class: "controls" },
      nh.choice("tensors", roles, map.state.role, again(map, "role")),
      nh.choice("format", formats, "", again(map, "format")),
      nh.choice("colour", ends, map.state.end, again(map, "end")),
      nh.choice("order", [["run", "as run"], ["tight", "tightest first"]], "run", again(map, "order")));
  };

  // What the map cannot show, and why.
  const notes = ({ block, before }) => [
    before ? null : "Growth is not told: the trace has no step before the onset to measure it against.",
    block.leftOut ? `${block.leftOut} tensors that tell less of this fault are left out, to keep this file small.` : null,
  ].filter(Boolean).map((text) => nh.html("p", { class: "note" }, text));

  const listen = (map, open) => {
    const { state, scroller } = map;
    scroller.addEventListener("click", (event) => {
      const box = scroller.getBoundingClientRect();
      const row = Math.floor((event.clientY - box.top + scroller.scrollTop) / nh.ROW);
      const column = Math.floor((event.clientX - box.left - map.left) / map.width);
      if (row >= map.rows.length) return;
      select(map, row, column < 0 ? state.column : column, false);
      open();
    });
    const page = () => Math.max(Math.floor(scroller.clientHeight / nh.ROW) - 1, 1);
    const all = map.block.columns.length;
    const moves = {
      ArrowUp: () => [-1, 0], ArrowDown: () => [1, 0], ArrowLeft: () => [0, -1], ArrowRight: () => [0, 1],
      PageUp: () => [-page(), 0], PageDown: () => [page(), 0], Home: () => [0, -all], End: () => [0, all],
    };
    scroller.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") open();
      else if (moves[event.key]) {
        const [down, across] = moves[event.key]();
        select(map, state.row + down, state.column + across, true);
      } else return;
      event.preventDefault();
    });
  };

  nh.heatMap = (report, block, host, openTensor) => {
    const roles = ROLES.filter(([role]) => block.tensors.some((tensor) => tensor.role === role));
    const before = nh.before(report, block);
    const onset = columnOf(block, report.onset?.step);
    const lead = columnOf(block, report.onset?.lead_step);
    const map = {
      report, block, before, onset, lead: lead === onset ? -1 : lead, usually: report.onset ? "before" : "the median of all steps",
      state: opening(report, block, roles, before), ...nodes(),
    };
    const open = (isFirst = false) => openTensor(map.rows[map.state.row], map.state.column, rangeOf(map, map.rows[map.state.row]), isFirst);
    host.append(controls(map, roles), map.key, map.axis, map.scroller, map.reading, ...notes(map));
    arrange(map);
    map.state.row = Math.max(map.rows.findIndex((tensor) => tensor.bad(map.state.column)), map.rows.findIndex((tensor) => tensor.module === report.onset?.module), 0);
    nh.redrawn(() => draw(map));
    select(map, map.state.row, map.state.column, true);
    listen(map, open);
    open(true);
  };
}
