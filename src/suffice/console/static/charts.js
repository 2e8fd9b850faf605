// Charts are drawn from the table beneath each of them, so both say the same.
(function () {
  "use strict";
  var drawn = [];

  function color(name) { return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim(); }
  function faint(name) { return "color-mix(in srgb, " + color(name) + " 22%, transparent)"; }

  // A cell's number; null: it was not measured, and the line has a gap there.
  function numberIn(cell) {
    var text = cell.dataset.v;
    return text === undefined || text === "" ? null : Number(text);
  }

  // Columns of a table: the x of each row, then one array for each head that is drawn.
  function columnsOf(table) {
    var heads = Array.from(table.tHead.rows[0].cells), rows = Array.from(table.tBodies[0].rows);
    rows.sort(function (a, b) { return numberIn(a.cells[0]) - numberIn(b.cells[0]); });
    return heads.map(function (_, at) { return rows.map(function (row) { return numberIn(row.cells[at]); }); });
  }

  // A band needs two days side by side; a day that stands alone gets a bar from its low end to its high one.
  function alone(bands) {
    return function (plot) {
      var wide = 10 * window.devicePixelRatio;
      bands.forEach(function (band) {
        var high = plot.data[band.series[0]], low = plot.data[band.series[1]];
        function there(at) { return high[at] !== null && high[at] !== undefined; }
        high.forEach(function (_, at) {
          if (!there(at) || there(at - 1) || there(at + 1)) return;
          var top = plot.valToPos(high[at], "y", true);
          plot.ctx.fillStyle = band.fill;
          plot.ctx.fillRect(plot.valToPos(plot.data[0][at], "x", true) - wide / 2, top, wide, plot.valToPos(low[at], "y", true) - top);
        });
      });
    };
  }

  function draw(figure) {
    var place = figure.querySelector(".plot"), table = figure.querySelector("table");
    if (!place || !table || !table.tBodies[0] || !table.tBodies[0].rows.length || !window.uPlot) return null;
    var heads = Array.from(table.tHead.rows[0].cells), all = columnsOf(table), series = [{}], data = [all[0]], bands = [];
    var unit = figure.dataset.unit || "", scale = Number(figure.dataset.scale || 1), isTime = figure.dataset.x === "day";
    var bars = figure.dataset.kind === "bars";
    heads.forEach(function (head, at) {
      var what = head.dataset.draw;
      if (!what) return;
      var name = head.dataset.color || "accent", edge = what === "low" || what === "high";
      data.push(all[at].map(function (v) { return v === null ? null : v * scale; }));
      series.push({
        label: head.textContent.trim(), stroke: edge || what === "dots" ? "transparent" : color(name), width: edge || what === "dots" ? 0 : what === "dash" ? 1.5 : 2,
        dash: what === "dash" ? [5, 4] : undefined, fill: bars ? color(name) : undefined, spanGaps: Boolean(figure.dataset.span),
        paths: bars ? window.uPlot.paths.bars({ size: [0.7, 40] }) : undefined,
        points: { show: what === "dots" || (!edge && !bars && all[at].filter(function (v) { return v !== null; }).length < 25), size: what === "dots" ? 9 : 5, fill: color(name) }
      });
      if (what === "high") bands.push({ series: [series.length - 1, series.length - 2], fill: faint(name) });
    });
    if (isTime) data[0] = data[0].map(function (day) { return day * 86400; });
    var axis = { stroke: color("muted"), grid: { stroke: color("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    // The first looks know little: the scale is that of the later ones, and their band runs out of the picture.
    var steady = figure.dataset.steady ? data.slice(1).map(function (one) { return one.slice(Math.floor(one.length / 3)); }) : null;
    var width = Math.max(220, place.clientWidth), small = place.classList.contains("small");
    place.textContent = "";
    return new window.uPlot({
      width: width, height: small ? 150 : 200, tzDate: function (ts) { return window.uPlot.tzDate(new Date(ts * 1e3), "UTC"); },
      series: series, bands: bands, hooks: { drawAxes: [alone(bands)] }, legend: { show: false }, cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false } },
      scales: {
        x: { time: isTime, range: data[0].length === 1 ? function (_, at) { var d = isTime ? 43200 : 0.5; return [at - d, at + d]; } : undefined },
        y: { range: function (_, low, high) {
          if (steady) {
            var all = steady.flat().filter(function (v) { return v !== null; });
            if (all.length) { low = Math.min.apply(null, all); high = Math.max.apply(null, all); }
          }
          if (low === null || low === undefined) return [0, 1];
          if (bars || figure.dataset.zero) low = Math.min(0, low);
          var pad = (high - low || Math.abs(high) || 1) * 0.08;
          return [bars || figure.dataset.zero && low === 0 ? low : low - pad, high + pad];
        } }
      },
      axes: [
        Object.assign({}, axis, { size: 28, grid: { show: false } }, isTime ? {
          values: function (_, ticks) { return ticks.map(function (t) { return new Date(t * 1e3).toISOString().slice(5, 10); }); }, incrs: [86400, 172800, 604800, 1209600, 2592000, 7776000]
        } : { values: function (_, ticks) { return ticks.map(function (t) { return (figure.dataset.xunit ? t + " " + figure.dataset.xunit : t.toLocaleString("en")); }); } }),
        Object.assign({}, axis, { size: unit.length > 2 ? 78 : 58, values: function (_, ticks) { return ticks.map(function (t) { return short(t) + (unit ? " " + unit : ""); }); } })
      ]
    }, data, place);
  }

  function short(v) {
    var a = Math.abs(v);
    if (a >= 1e9) return +(v / 1e9).toFixed(1) + " G";
    if (a >= 1e6) return +(v / 1e6).toFixed(1) + " M";
    if (a >= 1e4) return +(v / 1e3).toFixed(0) + " k";
    return String(+v.toFixed(a < 1 ? 3 : a < 10 ? 2 : 1));
  }

  function drawAll() {
    drawn.forEach(function (plot) { plot.destroy(); });
    drawn = Array.from(document.querySelectorAll("figure[data-chart]")).map(draw).filter(Boolean);
  }

  window.sufficeCharts = drawAll;
  document.addEventListener("DOMContentLoaded", drawAll);
  document.addEventListener("suffice:theme", drawAll);
  var waits;
  window.addEventListener("resize", function () { clearTimeout(waits); waits = setTimeout(drawAll, 150); });
})();
