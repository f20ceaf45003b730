// What may never be touched: an element that matches, or lies in one that does, gets no event of mouse or keyboard.
(() => {
  const names = ["pointerdown", "mousedown", "pointerup", "mouseup", "click", "dblclick", "auxclick", "contextmenu",
    "keydown", "keypress", "keyup", "beforeinput", "wheel", "touchstart", "dragstart", "drop", "submit"];
  const never = ["[data-flowhand-never]", ...settings.never].join(",");
  const page = flowhandPage;
  page.refused = [];
  page.forbidden = element => element && element.closest ? element.closest(never) : null;
  for (const name of names)
    window.addEventListener(name, event => {
      const element = event.target instanceof Element ? event.target : event.target?.parentElement;
      const found = page.forbidden(element) || (name === "submit" && page.forbidden(event.submitter));
      if (!found) return;
      event.preventDefault();
      event.stopImmediatePropagation();
      page.refused.push(`${found.tagName.toLowerCase()}${found.id ? "#" + found.id : ""} may never be touched`);
    }, {capture: true, passive: false});
})();
