// Before anything is drawn: the theme that was chosen here, if one was.
(function () {
  "use strict";
  document.documentElement.classList.remove("no-js");
  try {
    var chosen = localStorage.getItem("suffice-theme");
    if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  } catch (_) { /* storage is off: the system's theme it is */ }
})();
