// Tensors by steps: how much room each has in its format, and where it is NaN or Inf. One path a colour, not a node a cell.
{
  const ROLES = [
    ["output", "outputs"], ["grad_output", "output gradients"], ["weight", "weights"], ["grad", "weight gradients"],
    ["exp_avg_sq", "second moments"], ["update", "updates"],
  ];
  const BY_PHASE = { backward: "grad_output", unscale: "grad", clip: "grad", update: "weight" };
  // upper ends of the classes of room, in binades, from tight to wide
  const CLASSES = [0, 1, 2, 4, 8, 16, 32];
  const WORDS = ["beyond", "0–1", "1–2", "2–4", "4–8", "8–16", "16–32", "more"];
  // binades of growth against what was usual
  const GROWTH = [1, 2, 4, 8];
  const ROW = 16;
  const MOST_WIDE = 96;

  const formatOf = (ranges, dtype) => ranges.find((range) => range.aliases.includes(dtype));

  // Binades between a tensor and an end of a format: of its largest magnitude, or of its typical one to the smallest normal.
  nh.room = (tensor, column, range, end) => {
    const log2 = end === "overflow" ? tensor.amax(column) : tensor.rms(column);
    if (!range || Number.isNaN(log2)) return NaN;
    if (log2 === -Infinity) return end === "overflow" ? Infinity : -Infinity;
    return end === "overflow" ? range.max - log2 : log2 - range.normal;
  };

  // What is usual for a tensor: the median of its typical magnitude before the onset.
  const usual = new WeakMap();
  const growth = (tensor, column, before) => {
    if (!usual.has(tensor)) {
      const known = Array.from({ length: before }, (_, i) => tensor.rms(i)).filter(Number.isFinite).sort((a, b) => a - b);
      usual.set(tensor, known.length ? known[Math.floor(known.length / 2)] : NaN);
    }
    return tensor.rms(column) - usual.get(tensor);
  };

  const kindOfGrowth = (tensor, column, before) => {
    const grown = growth(tensor, column, before);
    if (Number.isNaN(grown)) return null;
    const level = GROWTH.findIndex((top) => Math.abs(grown) < top);
    const size = level < 0 ? GROWTH.length : level;
    return size ? `${grown > 0 ? "up" : "down"}${size}` : "h7";
  };

  const kindOf = (tensor, column, range, end, before) => {
    if (!tensor.seen(column)) return null;
    if (tensor.bad(column)) return "bad";
    if (end === "growth" && tensor.amax(column) !== -Infinity) return kindOfGrowth(tensor, column, before);
    const room = nh.room(tensor, column, range, end);
    if (room === -Infinity || tensor.amax(column) === -Infinity) return "zeros";
    if (Number.isNaN(room)) return null;
    const at = CLASSES.findIndex((top) => room < top);
    return `h${at < 0 ? CLASSES.length : at}`;
  };

  // Runs of equal cells of one row become one rectangle of their class's path.
  const paths = (rows, columns, width, range, end, before) => {
    const found = new Map();
    rows.forEach((tensor, row) => {
      const format = range(tensor);
      let from = 0;
      let kind = kindOf(tensor, 0, format, end, before);
      for (let column = 1; column <= columns; column++) {
        const next = column < columns ? kindOf(tensor, column, format, end, before) : undefined;
        if (next === kind) continue;
        if (kind) {
          const box = `M${(from * width).toFixed(2)} ${row * ROW + 1}h${((column - from) * width - (width > 5 ? 1 : 0)).toFixed(2)}v${ROW - 2}H${(from * width).toFixed(2)}z`;
          found.set(kind, (found.get(kind) ?? "") + box);
        }
        [from, kind] = [column, next];
      }
    });
    return [...found].map(([kind, d]) => nh.svg("path", { class: `cell ${kind}`, d }));
  };

  const tightest = (tensor, columns, range, end, before) => {
    let least = Infinity;
    for (let column = 0; column < columns; column++) {
      if (tensor.bad(column)) return -1e9;
      const room = end === "growth" ? -Math.abs(growth(tensor, column, before)) : nh.room(tensor, column, range, end);
      if (room < least) least = room;
    }
    return least;
  };

  const GROWN = [["down4", "÷256"], ["down3", "÷16"], ["down2", "÷4"], ["down1", "÷2"], ["h7", "as before"], ["up1", "×2"], ["up2", "×4"], ["up3", "×16"], ["up4", "×256"]];

  const legend = (end) => {
    const swatch = (kind, text) => nh.html(
      "span", {}, nh.svg("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, nh.svg("rect", { width: 12, height: 12, class: `cell ${kind}` })), text,
    );
    return nh.html("div", { class: "legend" }, ...(end === "growth" ? GROWN : WORDS.map((text, i) => [`h${i}`, text])).map((pair) => swatch(...pair)), swatch("bad", "NaN or Inf"), swatch("zeros", "all zero"));
  };

  nh.heatMap = (report, block, host, open) => {
    const columns = block.columns.length;
    const roles = ROLES.filter(([role]) => block.tensors.some((tensor) => tensor.role === role));
    const isSpike = ["loss-spike", "divergence"].includes(report.onset?.kind);
    const asked = isSpike ? "update" : (BY_PHASE[report.onset?.phase] ?? "output");
    const state = { role: roles.some(([role]) => role === asked) ? asked : roles[0][0], format: "", end: isSpike ? "growth" : "overflow", order: "run", row: 0, column: columns - 1 };
    const columnOf = (step) => (step === null || step === undefined ? -1 : block.columns.findIndex(([first, last]) => first <= step && step <= last));
    const onsetColumn = columnOf(report.onset?.step);
    if (onsetColumn >= 0) state.column = onsetColumn;
    const leadColumn = columnOf(report.onset?.lead_step);
    const before = onsetColumn > 0 ? onsetColumn : columns;
    const range = (tensor) => (state.format ? report.ranges.find((r) => r.format === state.format) : formatOf(report.ranges, tensor.dtype));

    let rows = [];
    let geometry = {};
    const axis = nh.html("div", { class: "axis" });
    const scroller = nh.html("div", {
      class: "cells", tabindex: "0", role: "application", "aria-roledescription": "heat map",
      "aria-label": "Tensors by steps. Arrow keys move, Enter opens a tensor.", "aria-describedby": "heat-reading",
    });
    const reading = nh.html("output", { class: "reading", id: "heat-reading", "aria-live": "polite" });
    const cursor = nh.svg("rect", { class: "cursor" });
    const key = nh.html("div");

    const arrange = () => {
      rows = block.tensors.filter((tensor) => tensor.role === state.role);
      if (state.order === "tight") {
        const least = new Map(rows.map((tensor) => [tensor, tightest(tensor, columns, range(tensor), state.end, before)]));
        rows = [...rows].sort((a, b) => least.get(a) - least.get(b));
      }
    };

    const say = () => {
      const tensor = rows[state.row];
      const format = range(tensor);
      const parts = [nh.place(tensor), nh.stepOf(block.columns[state.column])];
      if (!tensor.seen(state.column)) parts.push("not observed");
      else {
        const bad = tensor.bad(state.column);
        const infinite = tensor.infinite(state.column);
        if (bad > infinite) parts.push(`${bad - infinite} NaN`);
        if (infinite) parts.push(`${infinite} Inf`);
        parts.push(`${state.end === "overflow" ? "amax" : "rms"} ${nh.magnitude(state.end === "overflow" ? tensor.amax(state.column) : tensor.rms(state.column))}`);
        const room = nh.room(tensor, state.column, format, state.end);
        const grown = growth(tensor, state.column, before);
        if (state.end === "growth" && Number.isFinite(grown)) parts.push(`${nh.binades(grown)} against before`);
        else if (Number.isFinite(room) && !bad) parts.push(`${nh.binades(room)} in ${format.format}`);
        if (tensor.zero(state.column) > 0) parts.push(`${tensor.zero(state.column)} % zeros`);
      }
      reading.textContent = parts.join(" · ");
      const { left, width } = geometry;
      for (const [key, value] of Object.entries({ x: left + state.column * width - 0.5, y: state.row * ROW, width: Math.max(width, 3), height: ROW })) cursor.setAttribute(key, value);
    };

    const select = (row, column, isKey) => {
      state.row = Math.min(Math.max(row, 0), rows.length - 1);
      state.column = Math.min(Math.max(column, 0), columns - 1);
      if (isKey) {
        const top = state.row * ROW;
        if (top < scroller.scrollTop) scroller.scrollTop = top;
        if (top + ROW > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = top + ROW - scroller.clientHeight;
      }
      say();
    };

    const draw = () => {
      arrange();
      key.replaceChildren(legend(state.end));
      const whole = Math.max(scroller.clientWidth, 200);
      const left = Math.min(Math.max(Math.round(whole * 0.26), 96), 280);
      const width = Math.min((whole - left - 4) / columns, MOST_WIDE);
      geometry = { left, width };
      const across = (column) => left + (column + 0.5) * width;
      const every = Math.max(1, Math.ceil(56 / width));
      const ticks = block.columns.map(([first], i) => (i % every === 0 && Math.abs(i - onsetColumn) * width > 34 ? nh.svg("text", { x: across(i), y: 13 }, String(first)) : null));
      const mark = (column, text, kind) => (column < 0 ? [] : [nh.svg("text", { x: Math.min(across(column), whole - 5 * text.length), y: 13, class: kind }, text)]);
      axis.replaceChildren(nh.svg(
        "svg", { width: whole, height: 18, "aria-hidden": "true" }, nh.svg("text", { x: 0, y: 13, class: "count" }, `${rows.length} tensors`), nh.svg("text", { x: left - 8, y: 13, class: "label" }, "step"), ...ticks,
        ...mark(onsetColumn, `✗ ${report.onset?.step}`, "onset"),
      ));
      const letters = Math.floor((left - 12) / 6.6);
      const labels = rows.map((tensor, i) => nh.svg("text", { x: left - 8, y: i * ROW + 12, class: "label" }, nh.brief(nh.place(tensor), letters), nh.svg("title", {}, nh.place(tensor))));
      const height = rows.length * ROW;
      const line = (column, kind) => (column < 0 ? [] : [nh.svg("path", { class: kind, d: `M${across(column)} 0V${height}` })]);
      scroller.replaceChildren(nh.svg(
        "svg", { width: whole, height, "aria-hidden": "true" }, ...labels,
        nh.svg("g", { transform: `translate(${left} 0)` }, ...paths(rows, columns, width, range, state.end, before)),
        ...(leadColumn >= 0 && leadColumn !== onsetColumn ? line(leadColumn, "first-sign") : []), cursor,
      ));
      select(state.row, state.column, false);
    };

    const again = (change) => (value) => {
      const tensor = rows[state.row];
      state[change] = value;
      arrange();
      const at = rows.findIndex((row) => (change === "role" ? row.module === tensor.module : row === tensor));
      state.row = Math.max(at, 0);
      draw();
      select(state.row, state.column, true);
    };
    const cellAt = (event) => {
      const box = scroller.getBoundingClientRect();
      const x = event.clientX - box.left - geometry.left;
      return [Math.floor((event.clientY - box.top + scroller.scrollTop) / ROW), Math.floor(x / geometry.width)];
    };
    scroller.addEventListener("click", (event) => {
      const [row, column] = cellAt(event);
      if (row >= rows.length) return;
      select(row, column < 0 ? state.column : column, false);
      open(rows[state.row], state.column, range(rows[state.row]));
    });
    const page = () => Math.max(Math.floor(scroller.clientHeight / ROW) - 1, 1);
    const moves = {
      ArrowUp: () => [-1, 0], ArrowDown: () => [1, 0], ArrowLeft: () => [0, -1], ArrowRight: () => [0, 1],
      PageUp: () => [-page(), 0], PageDown: () => [page(), 0], Home: () => [0, -columns], End: () => [0, columns],
    };
    scroller.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") open(rows[state.row], state.column, range(rows[state.row]));
      else if (moves[event.key]) {
        const [down, across] = moves[event.key]();
        select(state.row + down, state.column + across, true);
      } else return;
      event.preventDefault();
    });

    const formats = [["", "as run"], ...report.ranges.map((r) => [r.format, r.format.replace("e4m3fn", "e4m3")])];
    const missing = block.leftOut ? nh.html("p", { class: "note" }, `${block.leftOut} tensors with more room are left out, to keep this file small.`) : null;
    host.append(
      nh.html("div", { class: "controls" },
        nh.choice("tensors", roles, state.role, again("role")),
        nh.choice("format", formats, "", again("format")),
        nh.choice("colour", [["overflow", "room to overflow"], ["underflow", "to underflow"], ["growth", "growth"]], state.end, again("end")),
        nh.choice("order", [["run", "as run"], ["tight", "tightest first"]], "run", again("order"))),
      key, axis, scroller, reading, ...(missing ? [missing] : []),
    );
    arrange();
    state.row = Math.max(rows.findIndex((tensor) => tensor.bad(state.column)), rows.findIndex((tensor) => tensor.module === report.onset?.module), 0);
    nh.redrawn(draw);
    select(state.row, state.column, true);
    open(rows[state.row], state.column, range(rows[state.row]), true);
  };
}
