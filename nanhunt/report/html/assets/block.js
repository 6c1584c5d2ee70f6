// The series block, opened: every tensor's history by column, as nanhunt/report/html/block.py wrote it.
const nh = {};
{
  const EMPTY = -32000;
  const ZERO = -31000;

  const inflate = async (text) => {
    if (typeof DecompressionStream === "undefined") {
      throw new Error("this browser cannot open the page's compressed series; Chrome 80, Firefox 113, Safari 16.4 and later can");
    }
    const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  // Undo the differences along each row; the sign is folded into the lowest bit.
  const levels = (low, high, rows, columns) => {
    const out = new Int16Array(rows * columns);
    for (let row = 0; row < rows; row++) {
      let value = 0;
      for (let at = row * columns; at < (row + 1) * columns; at++) {
        const folded = low[at] | (high[at] << 8);
        value = ((value + (folded & 1 ? -(folded + 1) / 2 : folded / 2) + 32768) & 65535) - 32768;
        out[at] = value;
      }
    }
    return out;
  };

  const histogram = ([low, ...shares]) => ({
    low: low ?? 0,
    shares: shares.map((level) => (level ? 2 ** ((level - 1) / 8 - 31) : 0)),
  });

  // A magnitude as its log2: NaN where it was not observed, -Infinity where all elements are zero.
  const log2 = (level, parts) => (level === EMPTY ? NaN : level === ZERO ? -Infinity : level / parts);

  nh.openBlock = async (text) => {
    const raw = await inflate(text.trim());
    const length = raw[0] | (raw[1] << 8) | (raw[2] << 16) | (raw[3] << 24);
    const head = JSON.parse(new TextDecoder().decode(raw.subarray(4, 4 + length)));
    const rows = head.tensors.length;
    const columns = head.columns.length;
    let at = 4 + length;
    const plane = () => raw.subarray(at, (at += rows * columns));
    const [amax, rms, amin] = [0, 1, 2].map(() => levels(plane(), plane(), rows, columns));
    const zero = plane();
    const [bad, infinite] = [0, 1].map(() => [plane(), plane(), plane(), plane()]);
    const whole = (bytes, i) => bytes[0][i] + bytes[1][i] * 2 ** 8 + bytes[2][i] * 2 ** 16 + bytes[3][i] * 2 ** 24;
    const tensors = head.tensors.map(([module, role, name, dtype, numel, before, now], row) => ({
      module, role, name, dtype, numel,
      before: histogram(before),
      at: histogram(now),
      amax: (column) => log2(amax[row * columns + column], head.parts),
      rms: (column) => log2(rms[row * columns + column], head.parts),
      amin: (column) => log2(amin[row * columns + column], 1),
      zero: (column) => zero[row * columns + column],
      bad: (column) => whole(bad, row * columns + column),
      infinite: (column) => whole(infinite, row * columns + column),
      seen: (column) => zero[row * columns + column] !== 255,
    }));
    return { columns: head.columns, leftOut: head.left_out, tensors };
  };
}
