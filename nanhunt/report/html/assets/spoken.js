// A curve in words, for whoever hears the page: a canvas has none of its own.
{
  const at = (curve, i) => `${curve.spell(curve.values[i])} at step ${curve.steps[i]}`;

  // First, last, lowest, highest and the onset; `spell` says a value as the curve's axis does.
  nh.curveWords = (curve, onset) => {
    const { label, steps, values } = curve;
    const finite = values.map((_, i) => i).filter((i) => Number.isFinite(values[i]));
    const parts = [`first ${at(curve, 0)}`, `last ${at(curve, steps.length - 1)}`];
    if (finite.length) {
      parts.push(`lowest ${at(curve, finite.reduce((a, b) => (values[b] < values[a] ? b : a)))}`);
      parts.push(`highest ${at(curve, finite.reduce((a, b) => (values[b] > values[a] ? b : a)))}`);
    }
    if (finite.length < values.length) parts.push(`${values.length - finite.length} of ${values.length} without a finite value`);
    const there = onset ? steps.indexOf(onset.step) : -1;
    if (onset) parts.push(there < 0 ? `onset at step ${onset.step}` : `onset ${at(curve, there)}`);
    return `${label}: ${parts.join(", ")}`;
  };

  nh.named = (plot, words) => {
    plot.ctx.canvas.setAttribute("role", "img");
    plot.ctx.canvas.setAttribute("aria-label", words);
    return plot;
  };
}
