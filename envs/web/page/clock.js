// The page's clock, which stands still until it is told to advance: dates, timers, frames, animations and chance.
// Runs before any script of the page. What is given to it stands in `settings`.
const flowhandPage = (() => {
  const EPOCH = 1704110400000; // 2024-01-01T12:00:00Z
  const FRAME = 1000 / 60;
  const RealDate = Date;
  const realFrame = window.requestAnimationFrame.bind(window);
  const hop = new MessageChannel();
  const timers = new Map();
  let now = 0, last = 0, state = 1;

  function add(run, delay, args, repeats) {
    const wait = Math.max(1, Number(delay) || 0), id = ++last;
    timers.set(id, {id, run: typeof run === "function" ? run : () => (0, eval)(run), due: now + wait, order: id, args,
      every: repeats ? wait : 0});
    return id;
  }
  const remove = id => void timers.delete(id);
  window.setTimeout = (run, delay, ...args) => add(run, delay, args, false);
  window.setInterval = (run, delay, ...args) => add(run, delay, args, true);
  window.clearTimeout = window.clearInterval = window.cancelAnimationFrame = window.cancelIdleCallback = remove;
  window.requestAnimationFrame = run =>
    add(() => run(now), (Math.floor(now / FRAME + 1e-6) + 1) * FRAME - now, [], false);
  window.requestIdleCallback = run => add(() => run({didTimeout: false, timeRemaining: () => 10}), 1, [], false);
  performance.now = () => now;

  function PageDate(...args) {
    if (!new.target) return new RealDate(EPOCH + Math.floor(now)).toString();
    return Reflect.construct(RealDate, args.length ? args : [EPOCH + Math.floor(now)],
      new.target === PageDate ? RealDate : new.target);
  }
  Object.setPrototypeOf(PageDate, RealDate);
  PageDate.prototype = RealDate.prototype;
  PageDate.prototype.constructor = PageDate;
  PageDate.now = () => EPOCH + Math.floor(now);
  window.Date = PageDate;

  // Mulberry32 (Tommy Ettinger 2017, public domain), until the page seeds a generator of its own.
  Math.random = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  // A text cursor blinks by a clock that is not the page's.
  const still = new CSSStyleSheet();
  still.replaceSync("* { caret-color: transparent !important }");
  document.adoptedStyleSheets = [still];
  // Nobody can answer a dialog of the browser: it is dismissed.
  window.alert = () => {};
  window.confirm = () => false;
  window.prompt = () => null;
  window.print = () => {};

  // All that a callback has promised runs before the next one.
  const settled = () => new Promise(done => { hop.port1.onmessage = done; hop.port2.postMessage(0); });
  const ages = new WeakMap();

  function animate(ms) {
    for (const each of document.getAnimations ? document.getAnimations() : []) {
      const age = (ages.has(each) ? ages.get(each) : 0) + ms, end = each.effect?.getComputedTiming().endTime ?? 0;
      ages.set(each, age);
      try {
        if (age >= end) each.finish();
        else { each.pause(); each.currentTime = age; }
      } catch { each.cancel(); } // one without an end
    }
  }

  async function advance(ms) {
    const end = now + ms;
    for (;;) {
      let next = null;
      for (const each of timers.values())
        if (each.due <= end && (!next || each.due < next.due || (each.due === next.due && each.order < next.order)))
          next = each;
      if (!next) break;
      now = Math.max(now, next.due);
      if (next.every) { next.due = now + next.every; next.order = ++last; } else timers.delete(next.id);
      try { next.run.apply(window, next.args); } catch (error) { console.error(error); }
      await settled();
    }
    now = end;
    animate(ms);
    document.documentElement?.offsetHeight; // styles are applied now, and what they load is asked for
    await settled();
  }
  return {advance, seed: n => { state = n | 0; }, frame: () => new Promise(done => realFrame(() => realFrame(done)))};
})();
