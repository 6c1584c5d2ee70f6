// The heat map's cells and their legend: one path a class, not a node a cell, and a mark where lightness does not tell.
{
  const ROOM = ["beyond", "0–1", "1–2", "2–4", "4–8", "8–16", "16–32", "more"].map((text, i) => [`h${i}`, text]);
  const growth = (usually) => [
    ["down4", "÷256"], ["down3", "÷16"], ["down2", "÷4"], ["down1", "÷2"], ["h7", `as ${usually}`],
    ["up1", "×2"], ["up2", "×4"], ["up3", "×16"], ["up4", "×256"],
  ];
  // pixels between marks: one a cell where cells are wide, and no band of marks where they are narrow
  const APART = 18;

  nh.ROW = 16;

  // NaN and Inf are crossed out; what falls has a minus, as a fall is as dark as a growth of the same size.
  const markOf = (kind, x, y, arm) => {
    const from = `M${(x - arm).toFixed(1)} `;
    if (kind === "bad") return `${from}${y - 3}l${2 * arm} 6m0-6l-${2 * arm} 6`;
    return kind.startsWith("down") ? `${from}${y}h${2 * arm}` : "";
  };

  // The marks of a run of cells: evenly apart, one at least, and none wider than the run.
  const marksOf = (kind, from, cells, row, width) => {
    const count = Math.max(1, Math.floor(cells / Math.ceil(APART / width)));
    const arm = Number(Math.min(3, 0.35 * cells * width).toFixed(1));
    return Array.from({ length: count }, (_, i) => markOf(kind, (from + ((i + 0.5) * cells) / count) * width, row * nh.ROW + nh.ROW / 2, arm)).join("");
  };

  // Runs of equal cells of one row become one rectangle of their class's path, and their marks go into another.
  const outlines = (rows, columns, width, kindAt) => {
    const found = new Map();
    const add = (kind, from, cells, row) => {
      const box = `M${(from * width).toFixed(2)} ${row * nh.ROW + 1}h${(cells * width - (width > 5 ? 1 : 0)).toFixed(2)}v${nh.ROW - 2}H${(from * width).toFixed(2)}z`;
      const [boxes, marks] = found.get(kind) ?? ["", ""];
      found.set(kind, [boxes + box, marks + marksOf(kind, from, cells, row, width)]);
    };
    rows.forEach((tensor, row) => {
      let from = 0;
      let kind = kindAt(tensor, 0);
      for (let column = 1; column <= columns; column++) {
        const next = column < columns ? kindAt(tensor, column) : undefined;
        if (next === kind) continue;
        if (kind) add(kind, from, column - from, row);
        [from, kind] = [column, next];
      }
    });
    return found;
  };

  const marked = (kind, marks) => (marks ? [nh.svg("path", { class: `mark ${kind}`, d: marks })] : []);

  nh.cells = (rows, columns, width, kindAt) => [...outlines(rows, columns, width, kindAt)]
    .flatMap(([kind, [boxes, marks]]) => [nh.svg("path", { class: `cell ${kind}`, d: boxes }), ...marked(kind, marks)]);

  const swatch = (text, ...shapes) => nh.html("span", {}, nh.svg("svg", { viewBox: "0 0 12 12", "aria-hidden": "true" }, ...shapes), text);
  const cell = ([kind, text]) => swatch(text, nh.svg("rect", { width: 12, height: 12, class: `cell ${kind}` }), ...marked(kind, markOf(kind, 6, 6, 3)));

  // A line with a seam of the paper's colour on both sides is seen on a cell of any colour.
  nh.firstSign = (x, height) => ["seam", "dots"].map((part) => nh.svg("path", { class: `first-sign ${part}`, d: `M${x} 0V${height}` }));

  nh.cellLegend = (end, usually, hasFirstSign) => nh.html(
    "div", { class: "legend" },
    ...(end === "growth" ? growth(usually) : ROOM).map(cell), cell(["bad", "NaN or Inf"]), cell(["zeros", "all zero"]),
    ...(hasFirstSign ? [swatch("first sign", ...nh.firstSign(6, 12))] : []),
  );
}
