// The curves of the run: loss, gradient norm, loss scale and rate over one axis of steps, zoomed together.
{
  const CURVES = [["loss", "loss"], ["grad_norm", "gradient norm"], ["loss_scale", "loss scale"], ["lr", "learning rate"]];

  const curveOf = (report, [name, label]) => {
    const series = report.series[name];
    if (!series || !series.steps.length) return null;
    const values = series.values.map(nh.value);
    const finite = values.filter(Number.isFinite);
    const [least, most] = nh.ends(finite);
    const isLog = finite.length > 0 && least > 0 && (name === "loss_scale" ? most > least : most > 30 * least);
    return { name, label, steps: series.steps, values, finite, isLog, base: name === "loss_scale" ? 2 : 10 };
  };

  // Vertical lines of onset and lead, and the crosses.
  const marks = (report, curve) => (plot) => {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio || 1;
    const line = (step, dash) => {
      const x = Math.round(plot.valToPos(step, "x", true));
      if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) return;
      ctx.setLineDash(dash.map((part) => part * ratio));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    };
    ctx.save();
    ctx.lineWidth = 1.25 * ratio;
    ctx.strokeStyle = nh.color("--fault");
    const onset = report.onset;
    if (onset) {
      line(onset.step, []);
      if (onset.lead_step !== null && onset.lead_step !== onset.step) line(onset.lead_step, [2, 3]);
    }
    ctx.restore();
    nh.crosses(plot, curve.steps.filter((_, i) => !Number.isFinite(curve.values[i])));
  };

  const room = (curve) => {
    if (!curve.finite.length) return () => [0, 1];
    const [least, most] = nh.ends(curve.finite);
    if (curve.isLog) return () => [least / 1.5, most * 2];
    const pad = (most - least || Math.abs(most) || 1) * 0.12;
    return () => [least - pad, most + pad];
  };

  // of a logarithmic axis only the powers themselves are drawn
  const whole = (base) => (_, ticks) => ticks.map((v) => (v && Math.abs(Math.log(v) / Math.log(base) - Math.round(Math.log(v) / Math.log(base))) < 1e-9 ? v : null));

  // and of these as many are named as there is room for: a loss that ran away spans sixteen of them
  const named = (base, room) => (plot, ticks) => {
    const powers = whole(base)(plot, ticks);
    const every = Math.ceil(powers.filter((v) => v !== null).length / room);
    let seen = 0;
    return powers.map((v) => (v !== null && seen++ % every === 0 ? v : null));
  };

  const plotOf = (report, curve, width, isLast, range, hooks) => {
    const axis = { stroke: () => nh.color("--muted"), font: "12px system-ui, sans-serif", ticks: { show: false } };
    const grid = { stroke: () => nh.color("--hairline"), width: 1 };
    const options = {
      width,
      height: isLast ? 122 : 96,
      padding: [8, 12, isLast ? null : 4, 0],
      legend: { show: false },
      cursor: { sync: { key: "nanhunt", setSeries: false }, drag: { x: true, y: false, setScale: true }, y: false },
      scales: {
        x: { time: false, range: () => range.now },
        y: curve.isLog ? { distr: 3, log: curve.base, range: room(curve) } : { range: room(curve) },
      },
      axes: [
        { ...axis, grid, values: (_, ticks) => (isLast ? ticks.map(String) : []), incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 1e5, 1e6], size: isLast ? 26 : 2 },
        { ...axis, ...(curve.isLog ? { filter: named(curve.base, 3), grid: { ...grid, filter: whole(curve.base) } } : { grid }), size: 62, space: 28, values: (_, ticks) => ticks.map((v) => (v === null ? "" : nh.number(v))) },
      ],
      series: [
        {},
        {
          stroke: () => nh.color("--accent"),
          width: 1.75,
          points: { show: curve.steps.length <= 60, size: 5, fill: () => nh.color("--accent") },
        },
      ],
      hooks: { draw: [marks(report, curve)], ...hooks },
    };
    const plot = new uPlot(options, [curve.steps, curve.values.map((v) => (Number.isFinite(v) ? v : null))], nh.html("div"));
    return nh.named(plot, nh.curveWords({ ...curve, spell: nh.number }, report.onset));
  };

  const readout = (report, curve) => {
    const node = nh.html("output", { class: "reading" });
    const onset = report.onset ? curve.steps.indexOf(report.onset.step) : -1;
    const resting = onset >= 0 ? onset : curve.steps.length - 1;
    const show = (i) => (node.textContent = `step ${curve.steps[i]}: ${nh.number(curve.values[i])}`);
    show(resting);
    return { node, show: (i) => show(i ?? resting) };
  };

  nh.timeline = (report, host) => {
    const curves = (report.curves ?? CURVES).map((curve) => curveOf(report, curve)).filter(Boolean);
    const steps = curves.flatMap((curve) => [curve.steps[0], curve.steps.at(-1)]);
    const pad = Math.max(...steps) > Math.min(...steps) ? (Math.max(...steps) - Math.min(...steps)) * 0.01 : 0.5;
    const all = [Math.min(...steps) - pad, Math.max(...steps) + pad];
    const range = { now: all };
    let plots = [];

    const zoom = (low, high) => {
      const least = Math.min(2, all[1] - all[0]);
      const span = Math.min(Math.max(high - low, least), all[1] - all[0]);
      const from = Math.min(Math.max(low, all[0]), all[1] - span);
      range.now = [from, from + span];
      plots.forEach((plot) => plot.setData(plot.data));
    };
    const scaled = (factor, shift = 0) => {
      const [low, high] = range.now;
      const centre = (low + high) / 2 + shift * (high - low);
      zoom(centre - ((high - low) * factor) / 2, centre + ((high - low) * factor) / 2);
    };
    const keys = {
      "+": () => scaled(0.5), "=": () => scaled(0.5), "-": () => scaled(2), "−": () => scaled(2),
      0: () => zoom(...all), ArrowLeft: () => scaled(1, -0.2), ArrowRight: () => scaled(1, 0.2),
    };
    const button = (text, label, run) => {
      const node = nh.html("button", { type: "button", "aria-label": label, title: label }, text);
      node.addEventListener("click", run);
      return node;
    };
    const controls = nh.html(
      "div", { class: "choice", role: "group", "aria-label": "Zoom" },
      button("+", "zoom in", keys["+"]), button("−", "zoom out", keys["-"]), button("all", "show all steps", keys[0]),
    );
    const frame = nh.html("div", { class: "curves", tabindex: "0", role: "group", "aria-label": "Curves of the run over its steps" });
    frame.addEventListener("keydown", (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      keys[event.key]();
    });
    frame.addEventListener("dblclick", () => zoom(...all));
    host.append(controls, frame);

    nh.redrawn(() => {
      plots.forEach((plot) => plot.destroy());
      const width = frame.clientWidth;
      const rows = curves.map((curve, i) => {
        const reading = readout(report, curve);
        const hooks = {
          setCursor: [(plot) => reading.show(plot.cursor.idx)],
          setSelect: [(plot) => plot.select.width > 4 && zoom(plot.posToVal(plot.select.left, "x"), plot.posToVal(plot.select.left + plot.select.width, "x"))],
        };
        const plot = plotOf(report, curve, width, i === curves.length - 1, range, hooks);
        const head = nh.html("div", { class: "caption" }, nh.html("strong", {}, curve.label), reading.node);
        return { plot, node: nh.html("div", { class: "curve" }, head, plot.root) };
      });
      plots = rows.map((row) => row.plot);
      frame.replaceChildren(...rows.map((row) => row.node));
    });
  };
}
