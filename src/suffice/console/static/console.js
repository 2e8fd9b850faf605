// The theme switch, keys, the first page live. Everything works without it, only less quickly.
(function () {
  "use strict";
  var root = document.documentElement;

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

  function on(name, selector, act) {
    document.addEventListener(name, function (event) { var found = event.target.closest && event.target.closest(selector); if (found) act(found, event); });
  }
  function fieldsOf(form) { return Array.from(form.elements).filter(function (one) { return one.name; }); }

  // The bar: a choice is applied at once; a range of one's own once it is complete. Empty fields stay out of the URL.
  function isCustom(form) { var days = form.elements.days; return Boolean(days) && days.value === "custom"; }
  on("change", "form.scope", function (form, event) {
    form.classList.toggle("is-custom", isCustom(form));
    if (event.target.name === "days" && isCustom(form)) { form.elements.from.focus(); return; }
    if (event.target.type === "date") return;
    form.requestSubmit();
  });
  on("submit", "form.scope", function (form) {
    fieldsOf(form).forEach(function (one) { if (!one.value || (one.type === "date" && !isCustom(form))) one.disabled = true; });
  });
  on("click", ".scope-switch", function (button) {
    var open = button.form.classList.toggle("is-open");
    button.setAttribute("aria-expanded", String(open));
  });
  document.addEventListener("DOMContentLoaded", function () {
    document.querySelectorAll("form.scope").forEach(function (form) { form.classList.toggle("is-custom", isCustom(form)); });
    openTarget();
  });
  window.addEventListener("pageshow", function () {
    document.querySelectorAll("form.scope [name]").forEach(function (one) { one.disabled = false; });
  });

  // A field that belongs to some kinds of a change is shown for those, and sent for those.
  function showKinds(form) {
    var kind = form.elements.kind || form.elements.decision;
    form.querySelectorAll("[data-of]").forEach(function (part) {
      part.hidden = Boolean(kind && kind.value) && !part.dataset.of.split(" ").includes(kind.value);
      part.querySelectorAll("[name]").forEach(function (one) { one.disabled = part.hidden; });
    });
  }
  on("change", "form.wide-form", showKinds);
  document.addEventListener("DOMContentLoaded", function () { document.querySelectorAll("form.wide-form").forEach(showKinds); });

  // A link to a folded part unfolds it.
  function openTarget() {
    var part = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!part) return;
    if (part.matches("details")) part.open = true;
    var field = part.querySelector("textarea, input:not([type=hidden]), select");
    if (field && part.matches("details:not(.fold), form")) field.focus(); else part.scrollIntoView();
  }
  window.addEventListener("hashchange", openTarget);
  document.addEventListener("click", function (event) {
    document.querySelectorAll("details.stop[open]").forEach(function (one) { if (!one.contains(event.target)) one.open = false; });
  });

  // Dialogs: the palette finds what the page "Find" finds; the keys are those of this page.
  function open(name) {
    var dialog = document.getElementById(name);
    if (!dialog || !dialog.showModal || dialog.open) return Boolean(dialog && dialog.open);
    dialog.showModal();
    if (name === "palette") { dialog.querySelector("input").select(); find(dialog); } else listKeys(dialog.querySelector("dl"));
    return true;
  }
  on("click", "[data-open]", function (one, event) { if (open(one.dataset.open)) event.preventDefault(); });
  on("click", "dialog", function (dialog, event) { if (event.target === dialog) dialog.close(); });
  document.addEventListener("keydown", function (event) {
    if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "k" && open("palette")) event.preventDefault();
  });
  function listKeys(list) {
    list.querySelectorAll("[data-of-page]").forEach(function (one) { one.remove(); });
    document.querySelectorAll("[data-key]").forEach(function (one) {
      if (one.dataset.key === "?" || !one.getClientRects().length) return;
      var key = document.createElement("dt"), what = document.createElement("dd"), label = one.closest("label");
      key.dataset.ofPage = what.dataset.ofPage = "1";
      key.appendChild(document.createElement("kbd")).textContent = one.dataset.key;
      what.textContent = (one.getAttribute("aria-label") || (label || one).textContent).replace(one.querySelector("kbd") ? one.querySelector("kbd").textContent : "\0", "").trim();
      list.append(key, what);
    });
  }
  var looked = 0;
  function find(dialog) {
    var query = new URLSearchParams(location.search), number = ++looked;
    query.set("q", dialog.querySelector("input").value);
    fetch("/console/find?" + query, { headers: { "hx-request": "true" } }).then(function (got) { return got.ok ? got.text() : ""; }).then(function (text) {
      if (number !== looked) return;
      dialog.querySelector(".found").innerHTML = text;
      choose(dialog, 0);
    }).catch(function () { /* the page "Find" does the same */ });
  }
  function choose(dialog, step) {
    var links = Array.from(dialog.querySelectorAll(".found a"));
    if (!links.length) return null;
    var at = Math.max(0, links.findIndex(function (one) { return one.classList.contains("is-chosen"); }));
    links[at].classList.remove("is-chosen");
    var chosen = links[(at + step + links.length) % links.length];
    chosen.classList.add("is-chosen");
    chosen.scrollIntoView({ block: "nearest" });
    return chosen;
  }
  var typed;
  on("input", "#palette input", function (field) { clearTimeout(typed); typed = setTimeout(function () { find(field.closest("dialog")); }, 120); });
  on("keydown", "#palette input", function (field, event) {
    var dialog = field.closest("dialog"), step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) { event.preventDefault(); choose(dialog, step); }
    if (event.key !== "Enter") return;
    event.preventDefault();
    clearTimeout(typed);
    var chosen = dialog.querySelector(".found a.is-chosen");
    if (chosen) chosen.click(); else field.form.submit();
  });
  on("click", "#palette .found a", function (one) { one.closest("dialog").close(); });

  // A list that is narrowed to what has every word of the field; the palette leads here with ?q=.
  function narrow(form) {
    var words = form.elements.q.value.toLowerCase().split(/\s+/), n = 0;
    document.querySelectorAll(form.dataset.filter).forEach(function (one) {
      var text = (one.dataset.title + " " + one.textContent).toLowerCase();
      one.hidden = !words.every(function (word) { return text.includes(word); });
      n += Number(!one.hidden);
    });
    document.querySelectorAll(".card:has(" + form.dataset.filter + ")").forEach(function (card) {
      card.hidden = !card.querySelector(form.dataset.filter + ":not([hidden])");
      if (card.matches("details")) card.open = Boolean(words.join("")) && !card.hidden;
    });
    form.querySelector("[role=status]").textContent = words.join("") ? n + (n === 1 ? " fits" : " fit") : "";
  }
  on("input", "[data-filter]", narrow);
  on("submit", "[data-filter]", function (_, event) { event.preventDefault(); });
  document.addEventListener("DOMContentLoaded", function () {
    document.querySelectorAll("[data-filter]").forEach(function (form) {
      form.elements.q.value = new URLSearchParams(location.search).get("q") || "";
      narrow(form);
    });
  });

  on("click", "[data-print]", function () { window.print(); });

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
    if (event.key === "Escape" && writing && !writing.closest("dialog")) { writing.blur(); return; }
    if (writing || document.querySelector("dialog[open]")) return;
    // Enter on a link or a button is that link or button.
    if ((event.key === "Enter" || event.key === " ") && event.target.closest("a, button, summary")) return;
    var found = Array.from(document.querySelectorAll("[data-key]")).find(function (one) { return one.dataset.key === event.key; });
    if (!found) return;
    event.preventDefault();
    if (found.matches("input, textarea, select")) { found.focus(); return; }
    found.click();
    var field = found.matches("summary") && found.parentElement.open && found.parentElement.querySelector("input");
    if (field) field.focus();
  });

  // The link that `suffice serve` prints at its first start carries the secret behind "#", which no server sees.
  document.addEventListener("DOMContentLoaded", function () {
    var field = document.querySelector("input[name=secret]"), given = /^#secret=(.+)$/.exec(location.hash);
    if (!field || !given) return;
    field.value = decodeURIComponent(given[1]);
    history.replaceState(null, "", location.pathname + location.search);
    field.form.querySelector("button").focus();
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
      var place = part.dataset.live + (mark === null ? "" : (part.dataset.live.includes("?") ? "&" : "?") + "mark=" + encodeURIComponent(mark));
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
