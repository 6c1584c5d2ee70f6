// What a cell of the heat map tells: a tensor's room to an end of its format, its growth, or that it is NaN or Inf.
{
  // upper ends of the classes of room, in binades, from tight to wide
  const ROOM = [0, 1, 2, 4, 8, 16, 32];
  // binades of growth against what is usual
  const GROWTH = [1, 2, 4, 8];

  // Binades between a tensor and an end of a format: of its largest magnitude, or of its typical one to the smallest normal.
  nh.room = (tensor, column, range, end) => {
    const log2 = end === "overflow" ? tensor.amax(column) : tensor.rms(column);
    if (!range || Number.isNaN(log2)) return NaN;
    if (log2 === -Infinity) return end === "overflow" ? Infinity : -Infinity;
    return end === "overflow" ? range.max - log2 : log2 - range.normal;
  };

  // How many columns come before the onset: all of them where nothing broke, none where the trace starts with the onset.
  nh.before = (report, block) => {
    const onset = report.onset?.step ?? null;
    return onset === null ? block.columns.length : block.columns.filter(([, last]) => last < onset).length;
  };

  // What is usual for a tensor: the median of its typical magnitude in those columns.
  const usual = new WeakMap();
  nh.growth = (tensor, column, before) => {
    if (!usual.has(tensor)) {
      const known = Array.from({ length: before }, (_, i) => tensor.rms(i)).filter(Number.isFinite).sort((a, b) => a - b);
      usual.set(tensor, known.length ? known[Math.floor(known.length / 2)] : NaN);
    }
    return tensor.rms(column) - usual.get(tensor);
  };

  const kindOfGrowth = (tensor, column, before) => {
    const grown = nh.growth(tensor, column, before);
    if (Number.isNaN(grown)) return null;
    const level = GROWTH.findIndex((top) => Math.abs(grown) < top);
    const size = level < 0 ? GROWTH.length : level;
    return size ? `${grown > 0 ? "up" : "down"}${size}` : "h7";
  };

  // The cell's class; null where nothing was observed, which stays the paper's colour.
  nh.kindOf = (tensor, column, range, end, before) => {
    if (!tensor.seen(column)) return null;
    if (tensor.bad(column)) return "bad";
    if (end === "growth" && tensor.amax(column) !== -Infinity) return kindOfGrowth(tensor, column, before);
    const room = nh.room(tensor, column, range, end);
    if (room === -Infinity || tensor.amax(column) === -Infinity) return "zeros";
    if (Number.isNaN(room)) return null;
    const at = ROOM.findIndex((top) => room < top);
    return `h${at < 0 ? ROOM.length : at}`;
  };

  // By what rows are ordered: the least room of a row, or its most growth, and NaN or Inf before all.
  nh.tightest = (tensor, columns, range, end, before) => {
    let least = Infinity;
    for (let column = 0; column < columns; column++) {
      if (tensor.bad(column)) return -1e9;
      const room = end === "growth" ? -Math.abs(nh.growth(tensor, column, before)) : nh.room(tensor, column, range, end);
      if (room < least) least = room;
    }
    return least;
  };

  // A cell in words, as they stand below the map.
  nh.cellWords = (tensor, column, { block, range, end, before, usually }) => {
    const parts = [nh.place(tensor), nh.stepOf(block.columns[column])];
    if (!tensor.seen(column)) return [...parts, "not observed"];
    const bad = tensor.bad(column);
    const infinite = tensor.infinite(column);
    if (bad > infinite) parts.push(`${bad - infinite} NaN`);
    if (infinite) parts.push(`${infinite} Inf`);
    parts.push(end === "overflow" ? `amax ${nh.magnitude(tensor.amax(column))}` : `rms ${nh.magnitude(tensor.rms(column))}`);
    const room = nh.room(tensor, column, range, end);
    const grown = end === "growth" ? nh.growth(tensor, column, before) : NaN;
    if (Number.isFinite(grown)) parts.push(`${nh.binades(grown)} against ${usually}`);
    else if (Number.isFinite(room) && !bad) parts.push(`${nh.binades(room)} in ${range.format}`);
    if (tensor.zero(column) > 0) parts.push(`${tensor.zero(column)} % zeros`);
    return parts;
  };
}
