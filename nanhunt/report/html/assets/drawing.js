// What every drawing needs: elements, colours of the theme, numbers as the rest of the report spells them.
{
  const SVG = "http://www.w3.org/2000/svg";
  const NAMES = { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity };

  const fill = (node, attributes, children) => {
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  };

  // Children are nodes or text: append() makes text nodes of strings, so that no name is ever read as markup.
  nh.html = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
  nh.svg = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);

  nh.color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // JSON has no NaN: the report spells non-finite numbers out.
  nh.value = (spelt) => (typeof spelt === "string" ? NAMES[spelt] : spelt);

  nh.number = (value) => {
    if (value === null || value === undefined) return "–";
    if (Number.isNaN(value)) return "NaN";
    if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
    if (Number.isInteger(value) && Math.abs(value) < 1e7) return String(value);
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-4) return value.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
    return String(Number(value.toPrecision(4)));
  };

  // Least and greatest of any number of values: an engine takes no more than so many arguments.
  nh.ends = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);

  // A log2 as the number that it stands for; `parts` of a binade leave two digits.
  nh.magnitude = (log2) => {
    if (Number.isNaN(log2)) return "–";
    if (log2 === -Infinity) return "0";
    const value = 2 ** log2;
    const text = value >= 1e5 || value < 1e-3 ? value.toExponential(1).replace("e+", "e") : String(Number(value.toPrecision(2)));
    return `≈ ${text}`;
  };

  nh.percent = (share) => {
    if (share === 0) return "0 %";
    if (share < 1e-4) return "<0.01 %";
    return `${Number((100 * share).toPrecision(2))} %`;
  };

  nh.binades = (margin) => `${margin < 0 ? "−" : "+"}${Math.abs(margin).toFixed(1)} binades`;

  // A power of two as people write it: 2⁻¹⁴.
  nh.power = (exponent) => `2${String(exponent).replace(/./g, (char) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[char] ?? "⁻")}`;

  nh.place = (tensor) => {
    const { module, name } = tensor;
    if (!module) return name || "(root)";
    if (!name || name === module) return module;
    return name.startsWith(`${module}.`) ? name : `${module}.${name}`;
  };

  nh.middle = (text, cells) => {
    if (text.length <= cells) return text;
    const tail = Math.ceil((cells - 1) * 0.6);
    return `${text.slice(0, cells - 1 - tail)}…${text.slice(text.length - tail)}`;
  };

  // A module's name in few letters: its first parts by their initials (b.0.attention.norm), and then cut in the middle.
  nh.brief = (name, letters) => {
    const parts = name.split(".");
    for (let i = 0; i < parts.length - 1 && parts.join(".").length > letters; i++) parts[i] = parts[i].slice(0, /^\d/.test(parts[i]) ? undefined : 1);
    return nh.middle(parts.join("."), letters);
  };

  nh.stepOf = ([first, last]) => (first === last ? `step ${first}` : `steps ${first}–${last}`);

  // One of several choices, as buttons that stay down.
  nh.choice = (label, options, chosen, onChoice) => {
    const buttons = options.map(([value, text]) => {
      const button = nh.html("button", { type: "button", "aria-pressed": String(value === chosen) }, text);
      button.addEventListener("click", () => {
        buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
        onChoice(value);
      });
      return button;
    });
    return nh.html("div", { class: "choice", role: "group", "aria-label": label }, nh.html("span", {}, label), ...buttons);
  };

  // A cross on a plot's canvas at the top of each step whose value no scale has.
  nh.crosses = (plot, steps) => {
    const { ctx, bbox } = plot;
    const ratio = devicePixelRatio || 1;
    const size = 4 * ratio;
    const y = bbox.top + size + 3 * ratio;
    ctx.save();
    ctx.strokeStyle = nh.color("--fault");
    ctx.lineWidth = 2 * ratio;
    for (const step of steps) {
      const x = plot.valToPos(step, "x", true);
      if (x < bbox.left - 1 || x > bbox.left + bbox.width + 1) continue;
      ctx.beginPath();
      ctx.moveTo(x - size, y - size);
      ctx.lineTo(x + size, y + size);
      ctx.moveTo(x + size, y - size);
      ctx.lineTo(x - size, y + size);
      ctx.stroke();
    }
    ctx.restore();
  };

  // A drawing that fails says so in its place, and takes no other with it.
  nh.attempt = async (host, what, draw) => {
    if (!host) return;
    try {
      await draw(host);
    } catch (error) {
      console.error(error);
      host.replaceChildren(nh.html("p", { class: "note undrawn", role: "status" }, `${what} cannot be drawn: ${error.message}.`));
    }
  };

  // What is to be drawn again where width, theme or paper changes; what failed at first is not tried again.
  const drawn = [];
  nh.redrawn = (draw) => {
    draw();
    drawn.push(draw);
  };
  nh.redraw = () => drawn.forEach((draw) => {
    try {
      draw();
    } catch (error) {
      console.error(error);
    }
  });
}
