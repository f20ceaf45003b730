// What the pages of this folder share: a generator of random numbers that follows from the seed, elements, and the
// contract with the world (docs/add_a_page.md):
//     window.flowhand.reset(seed) -> {instruction}         builds the page anew
//     window.flowhand.reward() -> {reward, done, failure}  failure: what went wrong, in words
"use strict";

const CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
const NAMES = "Anna Boris Carla David Edda Felix Greta Hugo Ida Jonas Karla Leo Mira Nils Olga Paul Rosa Simon Tessa Viktor"
  .split(" ");

const page = {
  // Marsaglia 2003, "Xorshift RNGs"; the seed is spread by Knuth's multiplicative hash first.
  random(seed) {
    let state = Math.imul(seed + 1, 2654435761) | 1;
    const next = () => {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      return (state >>> 0) / 4294967296;
    };
    for (let i = 0; i < 8; i++) next(); // neighbouring seeds begin alike
    const below = (limit) => Math.floor(next() * limit);
    const shuffled = (list) => {
      const rest = [...list];
      for (let i = rest.length - 1; i > 0; i--) {
        const j = below(i + 1);
        [rest[i], rest[j]] = [rest[j], rest[i]];
      }
      return rest;
    };
    return {
      between: (low, high) => low + below(high - low + 1), // both included
      choose: (list) => list[below(list.length)],
      chance: (p) => next() < p,
      shuffled,
      sample: (list, count) => shuffled(list).slice(0, count),
      string(low, high) {
        return Array.from({length: this.between(low, high)}, () => this.choose(CHARACTERS)).join("");
      },
      // So many different strings of letters and digits.
      strings(count, low, high) {
        const found = new Set();
        while (found.size < count) found.add(this.string(low, high));
        return [...found];
      },
    };
  },

  // An element with attributes, of which functions are listeners ({click: f}), and children, of which strings are text.
  element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (typeof value === "function") made.addEventListener(name, value);
      else if (typeof value === "boolean") made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  },

  show(...children) {
    document.body.replaceChildren(...children);
    window.scrollTo(0, 0);
  },

  // `build(random, heldOut)` shows the first screen and returns the instruction. Evaluation uses the seeds from
  // 1,000,000 on: `heldOut` lets a page keep ways of saying things for them.
  define(build) {
    const beginning = {reward: 0, done: false, failure: ""};
    let result = beginning;
    page.end = (failure) => {
      if (!result.done) result = {reward: failure ? -1 : 1, done: true, failure};
    };
    window.flowhand = {
      reset(seed) {
        result = beginning;
        return {instruction: build(page.random(seed), seed >= 1000000)};
      },
      reward: () => result,
    };
  },
};
