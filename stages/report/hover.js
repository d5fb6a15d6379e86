// Draws the charts of each box with the class `hover` by uPlot, in place of the SVG in it. What a box draws
// stands in its attribute data-charts, as stages/report/hover.py writes it. Without this script the SVG stays.
(() => {
  "use strict";
  const NEAR = 40; // pixels from the cursor within which a point gives the legend its figure
  const MARKS = 8; // glyphs on a long line; a line of few points has one on each
  const plots = [];

  const colour = (name) => () => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const made = (tag, into, text) => {
    const element = into.appendChild(document.createElement(tag));
    element.textContent = text;
    return element;
  };

  // Index of the point of a line that is nearest to the hovered x. Lines of other runs have other x.
  function nearest(u, line, hovered) {
    const [x, y] = [u.data[0], u.data[line]];
    const apart = (index) => Math.abs(u.valToPos(x[index], "x") - u.valToPos(x[hovered], "x"));
    let [left, right] = [hovered, hovered];
    while (left > 0 && y[left] == null && apart(left) <= NEAR) left--;
    while (right < x.length - 1 && y[right] == null && apart(right) <= NEAR) right++;
    const [best] = [left, right].filter((at) => y[at] != null).sort((a, b) => apart(a) - apart(b));
    return best === undefined || apart(best) > NEAR ? null : best;
  }

  function drawBands(u, bands) {
    for (const band of bands) {
      const [left, right] = [u.valToPos(band.first, "x", true), u.valToPos(band.last, "x", true)];
      const from = Math.max(left, u.bbox.left);
      const until = Math.min(right, u.bbox.left + u.bbox.width);
      if (until <= from) continue;
      u.ctx.fillStyle = band.colour;
      u.ctx.fillRect(from, u.bbox.top, until - from, u.bbox.height);
    }
  }

  function drawGlyphs(u, lines) {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    [ctx.textAlign, ctx.textBaseline] = ["center", "middle"];
    lines.forEach((line, at) => {
      const series = u.series[at + 1];
      if (!line.glyph || !series.show) return;
      const points = [];
      u.data[at + 1].forEach((value, index) => {
        if (value != null && index >= u.series[0].idxs[0] && index <= u.series[0].idxs[1]) points.push(index);
      });
      const every = points.length > 60 ? points.length / MARKS : 1;
      ctx.fillStyle = line.colour;
      ctx.globalAlpha = series.alpha ?? 1;
      for (let mark = every > 1 ? (every * (at % 10)) / 10 : 0; mark < points.length; mark += every) {
        const index = points[Math.floor(mark)];
        const y = u.valToPos(u.data[at + 1][index], "y", true);
        ctx.fillText(line.glyph, u.valToPos(u.data[0][index], "x", true), y);
      }
    });
    ctx.restore();
  }

  function options(chart, choice, width, key) {
    const whole = (u) => {
      const x = u.data[0];
      return !(u.scales.x.min > x[0] || u.scales.x.max < x[x.length - 1]);
    };
    const range = (u, low, high) => {
      if (whole(u) || low == null) return chart.range;
      const margin = 0.05 * (high - low) || 1e-9;
      return [low - margin, high + margin];
    };
    const axis = { stroke: colour("--soft"), grid: { stroke: colour("--grid"), width: 1 }, ticks: { show: false } };
    return {
      width,
      height: chart.height,
      scales: { x: { time: false }, y: chart.log ? { distr: 3 } : { range } },
      axes: [
        { ...axis, label: chart.axes[choice], size: 30, labelSize: 22 },
        { ...axis, label: chart.label, size: 56, labelSize: 24 },
      ],
      series: [
        { label: chart.axes[choice], value: (u, v) => (v == null ? "–" : String(v)) },
        ...chart.lines.map((line) => ({
          label: line.glyph ? `${line.glyph} ${line.label}` : line.label,
          stroke: line.colour,
          width: line.width,
          dash: line.dash,
          points: { show: false },
          value: (u, v) => (v == null ? "–" : chart.log ? v.toPrecision(4) : v.toFixed(4)),
        })),
      ],
      focus: { alpha: 0.25 },
      cursor: {
        dataIdx: nearest,
        focus: { prox: chart.lines.length > 3 ? 16 : -1 },
        ...(key && { sync: { key, scales: ["x", null] } }),
      },
      hooks: {
        drawClear: [(u) => drawBands(u, chart.bands)],
        draw: [(u) => drawGlyphs(u, chart.lines)],
      },
    };
  }

  // One chart, with a choice of its x axis where there are several.
  function show(chart, into, key) {
    const place = document.createElement("div");
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", chart.label);
    let plot = null;
    const draw = (choice) => {
      const data = uPlot.join(chart.lines.map((line) => [line.x[choice], line.y]));
      const next = new uPlot(options(chart, choice, into.clientWidth, key), data, place);
      if (plot) plots.splice(plots.indexOf(plot), 1);
      plot?.destroy();
      plots.push((plot = next));
    };
    if (chart.axes.length > 1) {
      const choices = made("div", into, "");
      choices.className = "choices";
      const name = `x-${plots.length}`;
      chart.axes.forEach((axis, choice) => {
        const label = made("label", choices, "");
        const radio = label.appendChild(document.createElement("input"));
        Object.assign(radio, { type: "radio", name, checked: choice === 0 });
        radio.addEventListener("change", () => draw(choice));
        label.append(axis);
      });
    }
    into.append(place);
    draw(0);
    for (const band of chart.bands) {
      const note = made("span", into, band.label);
      note.className = "band";
      note.style.setProperty("--band", band.colour);
    }
    new ResizeObserver(() => plot.setSize({ width: into.clientWidth, height: chart.height })).observe(into);
  }

  for (const box of document.querySelectorAll(".hover")) {
    const into = made("div", box, "");
    into.className = "charts";
    for (const chart of JSON.parse(box.dataset.charts)) show(chart, into, box.dataset.sync);
    made("p", into, "Point at the plot for its figures. Drag to enlarge a part; a double click shows all again.");
    box.classList.add("live");
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const plot of plots) plot.redraw(false, true);
  });
})();
