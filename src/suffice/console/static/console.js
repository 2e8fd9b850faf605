// The theme switch, keys, the first page live. Everything works without it, only less quickly.
(function () {
  "use strict";
  var root = document.documentElement;
  root.classList.remove("no-js");

  function theme() {
    return root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  }
  function nameSwitch() {
    document.querySelectorAll("[data-theme-switch]").forEach(function (button) {
      button.textContent = theme() === "dark" ? "Light" : "Dark";
      button.setAttribute("aria-label", "Switch to the " + (theme() === "dark" ? "light" : "dark") + " theme");
    });
  }
  document.addEventListener("click", function (event) {
    if (!event.target.closest("[data-theme-switch]")) return;
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    try { localStorage.setItem("suffice-theme", root.dataset.theme); } catch (_) { /* it holds for this page */ }
    nameSwitch();
    document.dispatchEvent(new Event("suffice:theme"));
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () {
    nameSwitch();
    document.dispatchEvent(new Event("suffice:theme"));
  });
  document.addEventListener("DOMContentLoaded", nameSwitch);

  // On a narrow screen the navigation is a row that scrolls: where one is must be seen.
  document.addEventListener("DOMContentLoaded", function () {
    var here = document.querySelector(".side [aria-current]"), row = here && here.closest("nav");
    if (row && row.scrollWidth > row.clientWidth) row.scrollLeft = here.offsetLeft - row.clientWidth / 3;
  });

  // A form that was sent is not sent again by a second click; one that answers with a file leaves this page as it is.
  document.addEventListener("submit", function (event) {
    var form = event.target;
    if (form.dataset.sent) { event.preventDefault(); return; }
    if ((form.method || "").toLowerCase() === "post" && !("again" in form.dataset)) form.dataset.sent = "1";
  });
  window.addEventListener("pageshow", function () {
    document.querySelectorAll("form[data-sent]").forEach(function (form) { delete form.dataset.sent; });
  });

  // Keys: an element with data-key is clicked by it, unless somebody is writing.
  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    var writing = event.target.closest("input, textarea, select, [contenteditable]");
    if (event.key === "Escape" && writing) { writing.blur(); return; }
    if (writing) return;
    // Enter on a link or a button is that link or button.
    if ((event.key === "Enter" || event.key === " ") && event.target.closest("a, button, summary")) return;
    var found = Array.from(document.querySelectorAll("[data-key]")).find(function (one) { return one.dataset.key === event.key; });
    if (!found) return;
    event.preventDefault();
    if (found.matches("input, textarea, select")) found.focus(); else found.click();
  });

  // The first page, live: it asks what has changed, and that takes the old part's place.
  document.addEventListener("DOMContentLoaded", function () {
    var part = document.querySelector("[data-live]");
    if (!part || !window.fetch) return;
    var said = document.querySelector("[data-live-said]"), mark = null;
    function say(text) { if (said) said.textContent = text; }
    function show(text) {
      if (!text) return;
      var open = Array.from(part.querySelectorAll("details")).map(function (one) { return one.open; });
      var focused = document.activeElement && part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      part.innerHTML = text;
      part.querySelectorAll("details").forEach(function (one, at) { one.open = Boolean(open[at]); });
      if (focused) { var again = Array.from(part.querySelectorAll("a")).find(function (one) { return one.getAttribute("href") === focused; }); if (again) again.focus({ preventScroll: true }); }
      if (window.sufficeCharts) window.sufficeCharts();
    }
    function look() {
      var place = part.dataset.live + (mark === null ? "" : "&mark=" + encodeURIComponent(mark));
      fetch(place, { headers: { "hx-request": "true" } }).then(function (got) {
        if (got.status === 401 || got.status === 403) { say("not live: load the page again"); return; }
        if (!got.ok) throw new Error(String(got.status));
        return got.text().then(function (text) { mark = got.headers.get("x-mark"); show(text); say("live"); again(); });
      }).catch(function () { say("reconnecting"); again(); });
    }
    function again() { setTimeout(look, 1000 * part.dataset.everyS); }
    look();
  });
})();
