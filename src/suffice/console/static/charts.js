// Charts are drawn from the table beneath each of them, so both say the same. A row's link is where a click on it goes.
(function () {
  "use strict";
  var drawn = [], HOUR = 3600, DAY = 86400;

  function color(name) { return getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim(); }
  function faint(name) { return "color-mix(in srgb, " + color(name) + " 22%, transparent)"; }

  // A cell's number; null: it was not measured, and the line has a gap there.
  function numberIn(cell) {
    var text = cell.dataset.v;
    return text === undefined || text === "" ? null : Number(text);
  }
  function isNumber(v) { return v !== null && v !== undefined; }

  function rowsOf(table) {
    return Array.from(table.tBodies[0].rows).sort(function (a, b) { return numberIn(a.cells[0]) - numberIn(b.cells[0]); });
  }

  function day(s) { return new Date(s * 1e3).toISOString().slice(0, 10); }
  function hour(s) { return new Date(s * 1e3).toISOString().slice(0, 13); }

  // A band needs two points side by side; one that stands alone gets a bar from its low end to its high one.
  function drawLoneBands(plot, bands) {
    var wide = 10 * window.devicePixelRatio;
    bands.forEach(function (band) {
      var high = plot.data[band.series[0]], low = plot.data[band.series[1]];
      high.forEach(function (_, at) {
        if (!isNumber(high[at]) || isNumber(high[at - 1]) || isNumber(high[at + 1])) return;
        var top = plot.valToPos(high[at], "y", true);
        plot.ctx.fillStyle = band.fill;
        plot.ctx.fillRect(plot.valToPos(plot.data[0][at], "x", true) - wide / 2, top, wide, plot.valToPos(low[at], "y", true) - top);
      });
    });
  }

  // The time of the last bucket is not over: it is hatched.
  function hatch(plot, chart) {
    var partial = chart.rows.findIndex(function (row) { return row.dataset.partial; });
    if (partial < 0) return;
    var x = plot.data[0], half = chart.step / 2, box = plot.bbox, ctx = plot.ctx;
    var left = Math.max(box.left, plot.valToPos(x[partial] - half, "x", true)), right = Math.min(box.left + box.width, plot.valToPos(x[partial] + half, "x", true));
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, box.top, right - left, box.height);
    ctx.clip();
    ctx.strokeStyle = color("muted"); ctx.globalAlpha = 0.35; ctx.lineWidth = 1;
    ctx.beginPath();
    for (var at = left - box.height; at < right; at += 7 * window.devicePixelRatio) { ctx.moveTo(at, box.top + box.height); ctx.lineTo(at + box.height, box.top); }
    ctx.stroke();
    ctx.restore();
  }

  // What was published, raised and decided meanwhile: a line each, with its text under the cursor.
  var TONES = { version: "accent", alarm: "bad", decision: "warn" };
  function markersOf(figure) {
    if (figure.dataset.x !== "time") return [];
    return Array.from(document.querySelectorAll("[data-markers] [data-at]")).map(function (one) {
      return { at: Number(one.dataset.at), kind: one.dataset.kind, text: one.textContent.replace(/\s+/g, " ").trim() };
    });
  }
  function drawMarkers(plot, chart) {
    var ctx = plot.ctx, box = plot.bbox, size = 4 * window.devicePixelRatio;
    chart.markers.forEach(function (one) {
      var x = plot.valToPos(one.at, "x", true);
      if (x < box.left || x > box.left + box.width) return;
      ctx.save();
      ctx.strokeStyle = ctx.fillStyle = color(TONES[one.kind] || "muted");
      ctx.globalAlpha = 0.8; ctx.lineWidth = window.devicePixelRatio;
      ctx.setLineDash([3, 3]);
      ctx.beginPath(); ctx.moveTo(x, box.top); ctx.lineTo(x, box.top + box.height); ctx.stroke();
      ctx.beginPath(); ctx.moveTo(x - size, box.top); ctx.lineTo(x + size, box.top); ctx.lineTo(x, box.top + size * 1.6); ctx.fill();
      ctx.restore();
    });
  }

  // The values at the cursor, as the table says them.
  function showValues(plot, chart) {
    var at = plot.cursor.idx, tip = chart.tip, left = plot.cursor.left;
    if (!isNumber(at) || left < 0) { tip.hidden = true; return; }
    var row = chart.rows[at];
    tip.textContent = "";
    line(row.cells[0].textContent + (row.dataset.partial ? ", not over yet" : ""), "", "tip-head");
    chart.heads.forEach(function (head, column) {
      if (head.dataset.draw && head.dataset.draw !== "low" && head.dataset.draw !== "high") line(head.textContent, row.cells[column].textContent, "", head.dataset.color);
      if (head.dataset.draw === "high") line("", row.cells[column - 1].textContent + " to " + row.cells[column].textContent, "muted");
    });
    chart.markers.forEach(function (one) { if (Math.abs(plot.valToPos(one.at, "x") - left) < 7) line(one.text, "", "tip-marker"); });
    tip.hidden = false;
    var wide = plot.over.clientWidth, beside = left > wide / 2 ? left - tip.offsetWidth - 12 : left + 12;
    tip.style.left = Math.max(0, beside) + plot.over.offsetLeft + "px";
    function line(name, value, kind, tone) {
      var made = tip.appendChild(document.createElement("div"));
      made.className = kind || "";
      if (tone) made.appendChild(document.createElement("i")).className = "tone-" + tone;
      made.appendChild(document.createElement("span")).textContent = name.trim();
      if (value) made.appendChild(document.createElement("b")).textContent = value.trim();
    }
  }

  // Drag: the bar's range; every figure of the page follows it.
  function zoom(plot, chart) {
    var from = plot.posToVal(plot.select.left, "x"), to = plot.posToVal(plot.select.left + plot.select.width, "x");
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    if (plot.cursor.drag.x === false || to - from < HOUR || !chart.isTime) return;
    var name = chart.step >= DAY && to - from > 3 * DAY ? day : hour, query = new URLSearchParams(location.search);
    query.delete("days");
    query.set("from", name(from));
    query.set("to", name(Math.min(to, Date.now() / 1e3)));
    location.search = query;
  }

  function seriesOf(chart, stacked) {
    var figure = chart.figure, bars = figure.dataset.kind === "bars", scale = Number(figure.dataset.scale || 1);
    var series = [{}], data = [chart.x], bands = [], under = chart.x.map(function () { return [0, 0]; }), drawnLast = [];
    chart.heads.forEach(function (head, at) {
      var what = head.dataset.draw;
      if (!what) return;
      var name = head.dataset.color || "accent", edge = what === "low" || what === "high", line = !bars || what === "dash";
      var values = chart.rows.map(function (row) { var v = numberIn(row.cells[at]); return v === null ? null : v * scale; });
      if (stacked && !line) {
        // Each part stands on the one before, above and below zero apart; the longest is drawn first.
        values = values.map(function (v, i) { if (v === null) return null; var side = v < 0 ? 1 : 0; under[i][side] += v; return under[i][side]; });
      }
      var one = {
        stroke: edge || what === "dots" ? "transparent" : color(name), width: edge || what === "dots" ? 0 : !line ? 0 : what === "dash" ? 1.5 : 2,
        dash: what === "dash" ? [5, 4] : undefined, fill: line ? undefined : color(name), spanGaps: Boolean(figure.dataset.span),
        paths: line ? undefined : window.uPlot.paths.bars({ size: [0.7, 40] }),
        points: { show: what === "dots" || (line && !edge && what !== "dash" && values.filter(isNumber).length < 25), size: what === "dots" ? 9 : 5, fill: color(name) }
      };
      if (stacked && !line) { drawnLast.unshift([one, values]); return; }
      data.push(values);
      series.push(one);
      if (what === "high") bands.push({ series: [series.length - 1, series.length - 2], fill: faint(head.dataset.color || "accent") });
    });
    drawnLast.forEach(function (pair) { series.push(pair[0]); data.push(pair[1]); });
    return { series: series, data: data, bands: bands, bars: bars };
  }

  // The scale is that of the lines; bands may run out of the picture, as a day with few audits knows little.
  function rangeOf(chart, made) {
    var figure = chart.figure, from = figure.dataset.steady ? Math.floor(chart.x.length / 3) : 0;
    var lines = made.data.slice(1).filter(function (_, at) { return figure.dataset.steady || made.series[at + 1].stroke !== "transparent" || made.series[at + 1].points.show; });
    var known = lines.map(function (one) { return one.slice(from); }).flat().filter(isNumber);
    if (!known.length) return [0, 1];
    var low = Math.min.apply(null, known), high = Math.max.apply(null, known);
    if (made.bars || figure.dataset.zero) { low = Math.min(0, low); high = Math.max(0, high); }
    var pad = (high - low || Math.abs(high) || 1) * (figure.dataset.steady ? 0.08 : made.bands.length ? 0.3 : 0.08);
    return [(made.bars || figure.dataset.zero) && low === 0 && !made.bands.length ? 0 : low - pad, high + pad];
  }

  function draw(figure) {
    var place = figure.querySelector(".plot"), table = figure.querySelector("table");
    if (!place || !table || !table.tBodies[0] || !table.tBodies[0].rows.length || !window.uPlot) return null;
    var rows = rowsOf(table), isTime = figure.dataset.x === "time", chart = {
      figure: figure, rows: rows, heads: Array.from(table.tHead.rows[0].cells), x: rows.map(function (row) { return numberIn(row.cells[0]) + (isTime ? Number(figure.dataset.step) / 2 : 0); }),
      isTime: isTime, step: Number(figure.dataset.step || 1), markers: markersOf(figure), tip: document.createElement("div")
    };
    var made = seriesOf(chart, figure.dataset.stack === "1"), unit = figure.dataset.unit || "", step = chart.step;
    var axis = { stroke: color("muted"), grid: { stroke: color("line"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    var bounds = figure.dataset.from ? [Number(figure.dataset.from), Number(figure.dataset.to)] : null;
    place.textContent = "";
    var plot = new window.uPlot({
      width: Math.max(220, place.clientWidth), height: place.classList.contains("small") ? 150 : 200,
      tzDate: function (ts) { return window.uPlot.tzDate(new Date(ts * 1e3), "UTC"); },
      series: made.series, bands: made.bands, legend: { show: false },
      hooks: {
        drawClear: [function (u) { hatch(u, chart); }], drawAxes: [function (u) { drawLoneBands(u, made.bands); }], draw: [function (u) { drawMarkers(u, chart); }],
        setCursor: [function (u) { showValues(u, chart); }], setSelect: [function (u) { if (u.select.width > 8) zoom(u, chart); }]
      },
      cursor: { y: false, points: { size: 6 }, drag: { x: isTime, y: false, setScale: false }, sync: isTime ? { key: "suffice-" + step } : undefined },
      scales: {
        x: { time: isTime, range: bounds ? function () { return bounds; } : chart.x.length === 1 ? function (_, at) { var d = isTime ? step : 0.5; return [at - d, at + d]; } : undefined },
        y: { range: function () { return rangeOf(chart, made); } }
      },
      axes: [
        Object.assign({}, axis, { size: 28, grid: { show: false } }, isTime ? {
          values: function (_, ticks) { return ticks.map(function (t) { return t % DAY ? hour(t).slice(11) + "h" : day(t).slice(5); }); }, incrs: step < DAY ? [HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY] : [DAY, 2 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 90 * DAY]
        } : { values: function (_, ticks) { return ticks.map(function (t) { return (figure.dataset.xunit ? t + " " + figure.dataset.xunit : t.toLocaleString("en")); }); } }),
        Object.assign({}, axis, { size: unit.length > 2 ? 78 : 58, values: function (_, ticks) { return ticks.map(function (t) { return short(t) + (unit ? " " + unit : ""); }); } })
      ]
    }, made.data, place);
    chart.tip.className = "tip";
    chart.tip.hidden = true;
    plot.root.appendChild(chart.tip);
    plot.over.addEventListener("mouseleave", function () { chart.tip.hidden = true; });
    var began = null;
    plot.over.addEventListener("mousedown", function (event) { began = event.clientX; });
    plot.over.addEventListener("click", function (event) {
      var row = isNumber(plot.cursor.idx) ? rows[plot.cursor.idx] : null, link = row && row.cells[0].querySelector("a");
      if (link && Math.abs(event.clientX - began) < 4) location.assign(link.href);
    });
    return plot;
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
  // A chart in a folded part has no width until it is shown.
  document.addEventListener("toggle", function (event) { if (event.target.open && event.target.querySelector("figure[data-chart]")) drawAll(); }, true);
  var waits;
  window.addEventListener("resize", function () { clearTimeout(waits); waits = setTimeout(drawAll, 150); });
})();
