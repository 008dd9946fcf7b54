"use strict";
(() => {
  const opened = performance.now();
  const form = document.getElementById("vote") || document.getElementById("rank");
  const SETTLED = 300; // ms: what was pressed twice must not vote on a pair that nobody has seen
  let sent = false, hidden = 0, since = 0;

  // A form is sent once; what comes back from the browser's own cache may be sent again, and the server counts it once.
  document.addEventListener("submit", (event) => {
    const early = event.submitter && event.submitter.matches(".cast") && performance.now() - opened < SETTLED;
    if (sent || early) { event.preventDefault(); return; }
    sent = true;
  });
  window.addEventListener("pageshow", (event) => { if (event.persisted) { sent = false; } });

  // The time a pair took is the time it was in sight.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { since = performance.now(); return; }
    hidden += performance.now() - since;
    if (form) { form.elements.away.value = String(Math.round(hidden / 1000)); }
  });

  // Said once more when the page stands, or a screen reader would not hear it.
  const status = document.getElementById("status");
  if (status) {
    const said = [...status.childNodes];
    status.replaceChildren();
    setTimeout(() => status.replaceChildren(...said), 100);
  }

  // --- a ranking: the numbers of answers in the order of their places
  const selects = form && form.id === "rank" ? [...form.querySelectorAll("select")] : [];
  let order = []; // of [answer, place]
  const place = () => {
    for (const select of selects) {
      const found = order.find(([answer]) => answer === select.dataset.answer);
      select.value = found ? String(found[1]) : "";
    }
    const told = order.map(([answer, at], i) => (i && order[i - 1][1] === at ? " = " : i ? " > " : "") + answer).join("");
    document.getElementById("order").textContent = told ? `Best first: ${told}` : "No answer has a place yet.";
  };
  let equal = false;
  const ranked = (key) => {
    if (key === "=") { equal = order.length > 0; return true; }
    if (key === "Backspace") { order.pop(); place(); return true; }
    if (key === "Enter") { form.requestSubmit(); return true; }
    if (!/^[1-9]$/.test(key) || Number(key) > selects.length) { return false; }
    if (!order.some(([answer]) => answer === key)) {
      order.push([key, equal ? order[order.length - 1][1] : order.length + 1]);
    }
    equal = false;
    place();
    return true;
  };

  // --- keys: each is written on what it presses (data-key)
  const pressed = (event) => {
    const digit = /^(Digit|Numpad)(\d)$/.exec(event.code || ""); // the same key on every layout
    if (digit && event.shiftKey) { return `shift+${digit[2]}`; }
    return digit ? digit[2] : event.key.length === 1 ? event.key.toLowerCase() : event.key;
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("input")) { event.preventDefault(); } // no vote by Enter in a field
    if (document.documentElement.dataset.keyboard === "off" && event.key !== "Escape") { return; }
    if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) { return; }
    if (event.target.matches("textarea, select")) {
      if (event.key === "Escape") { event.target.blur(); }
      return;
    }
    if (event.repeat) { return; }
    const key = event.key === "?" ? "?" : event.key === "=" ? "=" : pressed(event);
    if (selects.length && !event.target.matches("a, button, summary") && ranked(key)) { event.preventDefault(); return; }
    const found = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key);
    if (!found) { return; }
    event.preventDefault();
    if (found.matches("details")) { found.open = !found.open; if (found.open) { found.querySelector("summary").focus(); } return; }
    if (found.matches("textarea")) { found.focus(); return; }
    found.click();
  });
  document.body.dataset.keys = "soon";
  setTimeout(() => { document.body.dataset.keys = "ready"; }, SETTLED);
})();
