// What is on the screen: the visible elements that can be acted on, carry text or are drawn, as plain records.
(() => {
  const page = flowhandPage;
  const {width, height, ignore} = settings;
  const ACTIVE = "a,button,input,select,textarea,summary,[onclick],[tabindex],[contenteditable],[draggable=true]," +
    "[role=button],[role=link],[role=tab],[role=menuitem],[role=option],[role=checkbox],[role=radio],[role=switch]," +
    "[role=slider],[role=treeitem],[role=combobox]";
  const SHAPES = "rect,circle,ellipse,line,path,polygon,polyline,image,text";
  const FIELDS = "input,select,textarea,[contenteditable]";
  const COUNTED = ["data-tampered", "data-wob_eps", "data-wob_ref"]; // MiniWoB++ numbers its episodes in them
  const PAINTED = "img,canvas,video";
  const EVERYWHERE = {left: -Infinity, top: -Infinity, right: Infinity, bottom: Infinity};
  const tidy = text => (text || "").replace(/\s+/g, " ").trim();
  let ids = new WeakMap(), lastId = 0, shown = new Map();
  const idOf = element => ids.get(element) ?? (ids.set(element, ++lastId), lastId);

  function meet(a, b) {
    const left = Math.max(a.left, b.left), top = Math.max(a.top, b.top);
    return {left, top, right: Math.min(a.right, b.right), bottom: Math.min(a.bottom, b.bottom)};
  }
  const empty = box => box.right - box.left < 1 || box.bottom - box.top < 1;

  function ownText(element) {
    let text = "";
    for (const node of element.childNodes) if (node.nodeType === 3) text += node.data + " ";
    return tidy(text);
  }
  const plainText = element => tidy(element instanceof HTMLElement ? element.innerText : element.textContent);

  function isActive(element, style, above) {
    return element.matches(ACTIVE) || (style.cursor === "pointer" && above !== "pointer");
  }
  // Text with nothing in it but words: its parts are no elements of their own.
  function onlyWords(element) {
    return [...element.children].every(child => !child.matches(ACTIVE) && !child.matches(PAINTED + ",svg,br") &&
      getComputedStyle(child).display.startsWith("inline") && getComputedStyle(child).cursor !== "pointer" &&
      onlyWords(child));
  }
  function isDrawn(element, style) {
    if (element.matches(PAINTED)) return true;
    if (element instanceof SVGElement) return element.matches(SHAPES);
    if (element.textContent.trim() || element.querySelector("input,select,textarea,button,a,canvas,svg,img")) return false;
    return opaque(style.backgroundColor) || style.backgroundImage !== "none" || parseFloat(style.borderTopWidth) > 0;
  }
  const opaque = color => color !== "transparent" && !/^rgba.*, 0\)$/.test(color);
  function scrolls(element, style) {
    if (element === document.scrollingElement) return element.scrollHeight > window.innerHeight + 1;
    const more = element.scrollHeight > element.clientHeight + 1 && /auto|scroll/.test(style.overflowY);
    return more || (element.scrollWidth > element.clientWidth + 1 && /auto|scroll/.test(style.overflowX));
  }

  // What lies in a part that scrolls and is out of view there can be scrolled to, so it counts, with the box that it
  // has. `clip` is what is in view, `reach` what can be scrolled to; null outside of such parts.
  function collect(element, clip, reach, above, within, found) {
    if (ignore && element.matches(ignore)) return;
    const style = getComputedStyle(element);
    if (style.display === "none") return;
    const rect = rectOf(element, style);
    const fixed = style.position === "fixed", screen = {left: 0, top: 0, right: width, bottom: height};
    const inView = meet(rect, fixed ? screen : clip), away = Boolean(reach) && !fixed && empty(inView);
    const box = away ? meet(rect, reach) : inView;
    const active = isActive(element, style, above), scrollable = scrolls(element, style);
    const seen = style.visibility === "visible" && Number(style.opacity) > 0.01;
    let words = false;
    if (seen && !empty(box)) {
      const own = ownText(element), wraps = element.matches("label") && wrapsField(element);
      words = !active && !within && own && onlyWords(element);
      if (active || scrollable || (!within && !wraps && (own || isDrawn(element, style))))
        found.push({element, style, rect, box, active: active || scrollable, scrollable,
          text: textOf(element, active, words, own), away});
    }
    if (element.matches("select")) return options(element, box, seen && !empty(box), found);
    if (words) return;
    const clips = style.overflowX !== "visible" || style.overflowY !== "visible";
    const inner = clips ? inView : fixed ? screen : clip;
    const further = scrollable ? EVERYWHERE : fixed ? null : reach && clips ? meet(rect, reach) : reach;
    for (const child of element.children) collect(child, inner, further, style.cursor, within || active, found);
  }
  function textOf(element, active, words, own) {
    if (element.matches("input[type=submit],input[type=button],input[type=reset]")) return tidy(element.value);
    if (element.matches("input,select,textarea") || element === document.scrollingElement) return "";
    return active || words ? plainText(element) : own;
  }
  function wrapsField(label) {
    const field = label.control;
    return field && label.contains(field) && field.getBoundingClientRect().width > 0;
  }
  // A list's options are set by script, so they are there as long as the list is.
  function options(select, box, seen, found) {
    if (!seen) return;
    for (const element of select.options) {
      const rect = element.getBoundingClientRect(), own = meet(rect, box);
      found.push({element, style: getComputedStyle(element), rect, box: empty(own) ? box : own, active: true,
        scrollable: false, text: tidy(element.text)});
    }
  }

  function labelOf(item, all) {
    const {element} = item, get = name => element.getAttribute(name);
    const named = (get("aria-labelledby") || "").split(/\s+/).map(id => document.getElementById(id)).filter(Boolean);
    const labels = [...named, ...(element.labels || [])].map(plainText).filter(Boolean);
    const given = labels[0] || tidy(get("aria-label") || get("alt") || get("title"));
    if (given || element.matches("option")) return given;
    if (element.matches(FIELDS)) return tidy(get("placeholder")) || nearest(item, all);
    return item.active ? parts(element)[1] ? parts(element)[0] : before(item, all) : "";
  }
  // Of what runs over several lines, the largest part: its middle belongs to it.
  function rectOf(element, style) {
    const parts = style.display === "inline" ? [...element.getClientRects()] : [];
    if (parts.length < 2) return element.getBoundingClientRect();
    return parts.reduce((a, b) => (b.width * b.height > a.width * a.height ? b : a));
  }
  // The nearest text beside or above a field; of a box to tick, also to its right.
  function nearest(item, all) {
    const tick = item.element.matches("[type=checkbox],[type=radio]"), b = item.box;
    let best = "", least = settings.width / 2;
    for (const other of all) {
      if (!other.text || other.active || other.element.contains(item.element)) continue;
      const o = other.box, dx = Math.max(b.left - o.right, o.left - b.right, 0);
      const dy = Math.max(b.top - o.bottom, o.top - b.bottom, 0);
      const right = o.left >= b.right - 1, below = o.top >= b.bottom - 1;
      const distance = dx + dy + (below ? 40 : 0) + (right && !tick ? 20 : 0);
      if (distance < least) [best, least] = [other.text, distance];
    }
    return best;
  }
  // The texts that something which can be acted on is made of, such as the sender, subject and text of a mail.
  function parts(element) {
    const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT), texts = [];
    for (let node = walker.nextNode(); node && texts.length < 2; node = walker.nextNode())
      if (node.data.trim() && node.parentElement.getClientRects().length) texts.push(tidy(node.data));
    return texts;
  }
  // The first other text in the smallest part of the page that holds the element and some, such as a row's title.
  function before(item, all) {
    const texts = all.filter(other => other.text && !other.active && other !== item);
    for (let part = item.element.parentElement; part && part !== document.body; part = part.parentElement) {
      const inside = texts.find(other => part.contains(other.element) && !item.element.contains(other.element));
      if (inside) return inside.text;
    }
    return "";
  }

  function color(item) {
    const {element, style} = item;
    let text = style.color;
    if (element instanceof SVGElement) text = style.fill === "none" ? style.stroke : style.fill;
    else if (opaque(style.backgroundColor)) text = style.backgroundColor;
    return (text.match(/[\d.]+/g) || [0, 0, 0]).slice(0, 3).map(Number);
  }
  function valueOf(element) {
    if (element.matches("select")) return tidy([...element.selectedOptions].map(each => each.text).join(", "));
    if (element.matches("input,textarea")) return element.matches("[type=checkbox],[type=radio]") ? "" : element.value;
    return element.isContentEditable ? plainText(element) : element.getAttribute("aria-valuenow") || "";
  }
  const isChecked = element => Boolean(element.checked || (element.matches("option") && element.selected) ||
    ["aria-checked", "aria-selected", "aria-expanded", "aria-pressed"].some(n => element.getAttribute(n) === "true"));
  // Where to click it: its middle, or where that is covered the nearest of 25 places that are not; null: all are.
  function aimOf(item) {
    const {element, box} = item, steps = [0.5, 0.3, 0.7, 0.1, 0.9], places = [];
    for (const down of steps) for (const right of steps)
      places.push([box.left + right * (box.right - box.left), box.top + down * (box.bottom - box.top),
        Math.hypot(right - 0.5, down - 0.5)]);
    if (item.away || element.matches("option") || element === document.scrollingElement) return places[0].slice(0, 2);
    const free = places.sort((a, b) => a[2] - b[2]).find(([x, y]) => {
      const top = document.elementFromPoint(x, y);
      return top && (element.contains(top) || top.contains(element) || top.control === element);
    });
    return free ? free.slice(0, 2) : null;
  }
  function record(item, all) {
    const {element, box} = item, name = element.localName, aim = aimOf(item);
    const kind = name === "input" ? element.type : element.getAttribute("role") || "";
    return {
      id: idOf(element), tag: name, kind, text: item.text, value: valueOf(element), label: labelOf(item, all),
      name: tidy(`${element.id} ${element.getAttribute("class") || ""}`), left: box.left, top: box.top,
      width: box.right - box.left, height: box.bottom - box.top, active: item.active, scrollable: item.scrollable,
      away: Boolean(item.away),
      enabled: !element.disabled && !element.closest("[aria-disabled=true]") && aim !== null,
      aim: aim || [(box.left + box.right) / 2, (box.top + box.bottom) / 2],
      checked: isChecked(element), focused: document.activeElement === element, color: color(item),
      never: Boolean(page.forbidden(element)),
      attributes: Object.fromEntries([...element.attributes].filter(each => !COUNTED.includes(each.name))
        .map(each => [each.name, each.value])),
    };
  }

  page.observe = () => {
    const found = [], screen = {left: 0, top: 0, right: width, bottom: height};
    if (document.body) {
      const whole = document.scrollingElement;
      if (whole && scrolls(whole, getComputedStyle(whole)))
        found.push({element: whole, style: getComputedStyle(whole), rect: screen, box: screen, active: true,
          scrollable: true, text: ""});
      collect(document.body, screen, null, "", false, found);
    }
    shown = new Map(found.map(item => [idOf(item.element), item.element]));
    return {elements: found.map(item => record(item, found)), refused: page.refused.splice(0),
      address: location.href, page: performance.timeOrigin};
  };
  // An episode begins: elements are counted from one again.
  page.restart = () => { ids = new WeakMap(); lastId = 0; };
  page.element = id => shown.get(id);
})();
