// What is done by script, for the mouse and the keyboard cannot do it without a window: lists, dates, focus, scrolling.
(() => {
  const page = flowhandPage;
  const changed = element => ["input", "change"].forEach(n => element.dispatchEvent(new Event(n, {bubbles: true})));
  const allowed = element => {
    const found = page.forbidden(element);
    if (found) page.refused.push(`${found.tagName.toLowerCase()}${found.id ? "#" + found.id : ""} may never be touched`);
    return !found;
  };
  const onScreen = (x, y) => document.elementFromPoint(x, y);

  // An option is chosen; in a list of several it is added or taken away.
  page.choose = id => {
    const option = page.element(id), list = option?.closest("select");
    if (!list || option.disabled || list.disabled || !allowed(option)) return false;
    list.focus();
    if (list.multiple) option.selected = !option.selected;
    else list.value = option.value, option.selected = true;
    changed(list);
    return true;
  };
  // What typing into the element needs: "keys", or done by script ("done"), or why it cannot be.
  page.prepare = (id, text) => {
    const element = id === null ? document.activeElement : page.element(id);
    if (!element || element === document.body) return "nothing has the focus";
    if (!allowed(element)) return "forbidden";
    if (element.matches("select")) {
      const option = [...element.options].find(each => each.text.trim() === text.trim());
      if (!option || option.disabled || element.disabled) return "the list has no such option";
      element.value = option.value;
      option.selected = true;
      changed(element);
      return "done";
    }
    const wanted = native(element.type, text);
    if (element.matches("input") && wanted !== undefined) {
      if (wanted === null || element.disabled || element.readOnly) return "the field takes no such text";
      element.focus();
      element.value = wanted;
      changed(element);
      return "done";
    }
    const focus = document.activeElement;
    if (!(focus === element || element.contains(focus))) return "the element does not take the focus";
    return focus.matches("input,textarea") || focus.isContentEditable ? "keys" : "the element takes no text";
  };
  // The value of a native field for dates, times and colours, in the form that it wants; undefined for other fields.
  function native(type, text) {
    const date = /^\s*(\d{1,2})\/(\d{1,2})\/(\d{4})\s*$/.exec(text), pad = n => String(n).padStart(2, "0");
    const time = /^\s*(\d{1,2}):(\d{2})\s*([AP]M)?\s*$/i.exec(text);
    if (type === "date") return date ? `${date[3]}-${pad(date[1])}-${pad(date[2])}` : text.match(/\d{4}-\d\d-\d\d/)?.[0] ?? null;
    if (type === "time" && time) {
      const hour = time[3] ? (Number(time[1]) % 12) + (/p/i.test(time[3]) ? 12 : 0) : Number(time[1]);
      return `${pad(hour)}:${time[2]}`;
    }
    if (type === "time" || type === "month" || type === "week" || type === "datetime-local") return null;
    if (type === "color") return /^#[0-9a-f]{6}$/i.test(text.trim()) ? text.trim() : null;
    return undefined;
  }
  page.focus = id => {
    const element = page.element(id);
    if (!element || !allowed(element)) return false;
    if (!element.contains(document.activeElement)) element.focus();
    return true;
  };
  // Scrolls to an element that is out of view; where its middle is then.
  page.reveal = async id => {
    const element = page.element(id);
    element.scrollIntoView({block: "nearest", inline: "nearest", behavior: "instant"});
    await page.frame(); // the event of the scrolling comes with the next frame
    const box = element.getBoundingClientRect();
    return [(box.left + box.right) / 2, (box.top + box.bottom) / 2];
  };
  // What is under a place: its text, whether it has the focus, and whether a click would open a window of the browser.
  page.under = (x, y) => {
    const element = onScreen(x, y);
    if (!element) return {text: "", focused: false, native: false};
    const text = element.matches("input,textarea") ? element.value : element.innerText ?? element.textContent;
    const native = element.matches("select,input[type=color]") && !(element.size > 1) && !element.multiple;
    return {text: (text || "").replace(/\s+/g, " ").trim(), native,
      focused: element !== document.body && element.contains(document.activeElement)};
  };
  page.focusAt = (x, y) => {
    const element = onScreen(x, y);
    if (element && allowed(element)) element.focus();
  };
  // Scrolls the nearest part around a place that can move so; `id` null: whatever lies there.
  page.scroll = async (id, x, y, dx, dy) => {
    const start = id === null ? onScreen(x, y) : page.element(id);
    if (!start || !allowed(start)) return false;
    const wheel = new WheelEvent("wheel", {deltaX: dx, deltaY: dy, clientX: x, clientY: y, bubbles: true, cancelable: true});
    if (!start.dispatchEvent(wheel)) return true;
    for (let part = start; part; part = part.parentElement) {
      const style = getComputedStyle(part), whole = part === document.scrollingElement;
      const before = [part.scrollLeft, part.scrollTop];
      if (!whole && !/auto|scroll/.test(style.overflowY + style.overflowX) && !part.matches("textarea")) continue;
      part.scrollBy({left: dx, top: dy, behavior: "instant"});
      if (part.scrollLeft !== before[0] || part.scrollTop !== before[1]) {
        await page.frame(); // the event of the scrolling comes with the next frame
        return true;
      }
    }
    return false;
  };
})();
