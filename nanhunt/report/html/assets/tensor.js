// One tensor: its magnitudes over the steps, and its exponents against the ranges of the formats.
{
  const BAR = 120;
  const LINE = 18;

  const limits = (plot, range) => {
    if (!range) return;
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio || 1;
    ctx.save();
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.fillStyle = ctx.strokeStyle = nh.color("--fault");
    ctx.textAlign = "left";
    ctx.lineWidth = ratio;
    ctx.setLineDash([4 * ratio, 3 * ratio]);
    for (const [value, text] of [[range.max, `${range.format} max`], [range.normal, `${range.format} smallest normal`]]) {
      const y = Math.round(plot.valToPos(value, "y", true));
      if (y < bbox.top || y > bbox.top + bbox.height) continue;
      ctx.beginPath();
      ctx.moveTo(bbox.left, y);
      ctx.lineTo(bbox.left + bbox.width, y);
      ctx.stroke();
      ctx.fillText(text, bbox.left + 6 * ratio, y < bbox.top + 16 * ratio ? y + 13 * ratio : y - 4 * ratio);
    }
    ctx.restore();
  };

  // Its magnitudes in words: a curve after the other, as log2 that are spelt as what they stand for.
  const historyWords = (report, tensor, columns, steps) => [["largest magnitude", tensor.amax], ["rms", tensor.rms]]
    .map(([label, at]) => nh.curveWords({ label, steps, values: columns.map((i) => at(i)), spell: nh.magnitude }, report.onset)).join("; ");

  const history = (report, block, tensor, range, width) => {
    const columns = block.columns.map((_, i) => i);
    const finite = (value) => (Number.isFinite(value) ? value : null);
    const data = [block.columns.map(([first]) => first), ...["amax", "rms", "amin"].map((key) => columns.map((i) => finite(tensor[key](i))))];
    const bad = data[0].filter((_, i) => tensor.bad(i));
    const known = data.slice(1).flat().filter((value) => value !== null);
    if (range) known.push(...[range.max, range.normal].filter((end) => known.some((value) => Math.abs(value - end) < 8)));
    const [low, high] = known.length ? [Math.min(...known) - 1.5, Math.max(...known) + 1.5] : [-1, 1];
    const [first, last] = [data[0][0], data[0].at(-1)];
    const pad = (last - first) * 0.02 || 0.5;
    const axis = { stroke: () => nh.color("--muted"), font: "12px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: () => nh.color("--hairline"), width: 1 } };
    const points = { show: columns.length <= 60, size: 4 };
    const curve = (color, more) => ({ stroke: () => nh.color(color), points: { ...points, fill: () => nh.color(color) }, width: 1.75, ...more });
    const plot = new uPlot(
      {
        width, height: 246, legend: { show: false }, padding: [8, 8, 0, 0], cursor: { show: false },
        scales: { x: { time: false, range: () => [first - pad, last + pad] }, y: { range: () => [low, high] } },
        axes: [
          { ...axis, values: (_, ticks) => ticks.map(String), incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 1e5, 1e6], size: 26 },
          { ...axis, size: 46, space: 26, incrs: [1, 2, 4, 8, 16, 32, 64], values: (_, ticks) => ticks.map((tick) => nh.power(tick)) },
        ],
        series: [{}, curve("--accent"), curve("--second", { dash: [6, 3] }), curve("--muted", { width: 1, dash: [2, 3] })],
        hooks: { draw: [(plot) => limits(plot, range), (plot) => nh.crosses(plot, bad)] },
      },
      data, nh.html("div"),
    );
    return nh.named(plot, historyWords(report, tensor, columns, data[0])).root;
  };

  // What a format makes of these exponents; a bin that an end cuts is told by its larger part.
  const fate = (histogram, range) => {
    const lost = { beyond: 0, subnormal: 0, flushed: 0 };
    histogram.shares.forEach((share, i) => {
      const middle = histogram.low + i + 0.5;
      if (middle > range.max) lost.beyond += share;
      else if (middle < range.smallest - 1) lost.flushed += share;
      else if (middle < range.normal) lost.subnormal += share;
    });
    return lost;
  };

  const fateText = (lost, isFinite) => {
    const parts = Object.entries(lost).filter(([, share]) => share > 0);
    return parts.length ? parts.map(([what, share]) => `${nh.percent(Math.min(share, 1))} ${what}`).join(", ") : isFinite ? "holds all of it" : "holds all that is finite";
  };

  const exponents = (report, tensor, width, isFinite) => {
    const both = [tensor.before, tensor.at].filter((h) => h.shares.length);
    if (!both.length) return nh.html("p", { class: "note" }, "No exponents were counted of this tensor.");
    const now = tensor.at.shares.length ? tensor.at : tensor.before;
    const low = Math.min(-26, ...both.map((h) => h.low)) - 1;
    const high = Math.max(18, ...both.map((h) => h.low + h.shares.length)) + 1;
    const left = 46;
    const unit = (width - left - 4) / (high - low);
    const across = (exponent) => left + (Math.min(Math.max(exponent, low), high) - low) * unit;
    const most = Math.max(...both.flatMap((h) => h.shares));
    const bars = (histogram, kind) => histogram.shares.map((share, i) => {
      if (!share) return null;
      const height = Math.max(Math.sqrt(share / most) * BAR, 1);
      const inset = kind === "at" ? unit * 0.28 : unit * 0.08;
      return nh.svg("rect", { class: kind, x: across(histogram.low + i) + inset, y: BAR + 6 - height, width: Math.max(unit - 2 * inset, 0.5), height },
        nh.svg("title", {}, `${nh.percent(share)} between ${nh.power(histogram.low + i)} and ${nh.power(histogram.low + i + 1)}`));
    });
    const every = unit * 8 > 44 ? 8 : 16;
    const ticks = [];
    for (let exponent = Math.ceil(low / every) * every; exponent <= high; exponent += every) {
      ticks.push(nh.svg("text", { x: across(exponent), y: BAR + 22, class: "tick" }, nh.power(exponent)));
      ticks.push(nh.svg("path", { class: "grid", d: `M${across(exponent)} 6V${BAR + 6}` }));
    }
    const ranges = report.ranges.map((range, i) => {
      const y = BAR + 40 + i * LINE;
      return nh.svg("g", {},
        nh.svg("text", { x: left - 6, y: y + 4, class: "label" }, range.format.replace("e4m3fn", "e4m3")),
        nh.svg("path", { class: "subnormal", d: `M${across(range.smallest)} ${y}H${across(range.normal)}` }),
        nh.svg("path", { class: "range", d: `M${across(range.normal)} ${y}H${across(range.max)}` }));
    });
    const picture = nh.svg("svg", { width, height: BAR + 36 + report.ranges.length * LINE, role: "img", "aria-label": "Exponents of the tensor's elements, and the formats' ranges below" },
      ...ticks, ...bars(tensor.before, "before"), ...bars(tensor.at, "at"), ...ranges);
    const fates = nh.html("dl", { class: "facts" }, ...report.ranges.map((range) => nh.html("div", {}, nh.html("dt", {}, range.format), nh.html("dd", {}, fateText(fate(now, range), isFinite)))));
    return nh.html("div", {}, picture, fates);
  };

  const key = (shape, text) => nh.html("span", {}, nh.svg("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" }, shape), text);
  const line = (kind, text) => key(nh.svg("path", { class: kind, d: "M1 5H21" }), text);
  const bar = (kind, text) => key(nh.svg("rect", { class: kind, x: 1, y: 1, width: 20, height: 8 }), text);

  const curvesOf = (report, block, shown, width) => nh.html("figure", {},
    nh.html("figcaption", { class: "legend" }, line("amax", "largest"), line("rms", "rms"), line("amin", "smallest magnitude"), line("limit", "format's ends")),
    history(report, block, shown.tensor, shown.range, width));

  const exponentsOf = (report, block, { tensor }, width) => {
    const hasBoth = tensor.before.shares.length && tensor.at.shares.length;
    const onset = report.onset ? `step ${report.onset.step}` : "";
    return nh.html("figure", {},
      nh.html("figcaption", { class: "legend" }, bar("before", hasBoth ? "steps before" : "all steps"), ...(tensor.at.shares.length ? [bar("at", onset)] : []), "share of elements by exponent, √ scale"),
      exponents(report, tensor, width, !block.columns.some((_, column) => tensor.bad(column))));
  };

  nh.tensorPanel = (report, block, host) => {
    let shown = null;
    // the title alone is announced: it stays, and its text changes, while all below it is made anew
    const title = nh.html("h3", { "aria-live": "polite" });
    const body = nh.html("div");
    const draw = () => {
      if (!shown) return;
      const { tensor, column } = shown;
      if (title.parentNode !== host) host.replaceChildren(title, body);
      const width = Math.min(host.clientWidth, 1100);
      const half = width > 760 ? Math.floor((width - 32) / 2) : width;
      const role = ` ${tensor.role.replaceAll("_", " ")}`;
      if (title.textContent !== nh.place(tensor) + role) title.replaceChildren(nh.html("code", {}, nh.place(tensor)), role);
      body.replaceChildren(
        nh.html("p", { class: "note" }, `${tensor.dtype}, ${tensor.numel} elements; ${nh.stepOf(block.columns[column])}: amax ${nh.magnitude(tensor.amax(column))}, rms ${nh.magnitude(tensor.rms(column))}, ${tensor.bad(column)} non-finite`),
        nh.html("div", { class: half < width ? "beside" : "stacked" }, curvesOf(report, block, shown, half), exponentsOf(report, block, shown, half)),
      );
    };
    nh.redrawn(draw);
    return (tensor, column, range, isFirst = false) => {
      shown = { tensor, column, range };
      draw();
      if (!isFirst) host.scrollIntoView({ block: "nearest", behavior: "auto" });
    };
  };
}
