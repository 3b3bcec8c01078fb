// SPDX-License-Identifier: Apache-2.0
// The dialog over one picture: which words matched which regions of it.
"use strict";

const detail = (() => {
  const at = (id) => document.getElementById(id);
  const dialog = at("detail"), canvas = at("overlay"), picture = at("detail-picture");
  let results = [], version = "", sentence = "", place = 0, asked = 0, answer = null, chosen = -1;

  async function show(index) {
    place = index;
    const hit = results[index], mine = ++asked;
    answer = null;
    at("detail-title").textContent =
      `${hit.rank}. ${hit.file} (similarity ${hit.similarity.toFixed(3)})`;
    picture.src = `.${hit.picture}/large`;
    picture.alt = `Picture ${hit.file}`;
    at("before").disabled = index === 0;
    at("after").disabled = index === results.length - 1;
    at("words").replaceChildren();
    at("legend").hidden = true;
    clear();
    if (!sentence) {
      at("why-text").textContent =
        "Found by the example picture alone: there are no words to compare.";
      return;
    }
    at("why-text").textContent = "Comparing the words with the picture …";
    try {
      const found = await ask("api/explain", { sentence, row: hit.row, version });
      if (mine !== asked) return;
      answer = found;
      listWords();
    } catch (error) {
      if (mine === asked) at("why-text").textContent = error.message;
    }
  }

  function listWords() {
    const shown = answer.words.filter((each) => each.shown);
    if (!shown.length) {
      at("why-text").textContent = "The sentence has no words to compare.";
      return;
    }
    const strengths = shown.map((each) => each.strength);
    const low = Math.min(...strengths), span = Math.max(...strengths) - low || 1;
    at("why-text").textContent = "Which regions each word matched; choose a word:";
    at("words").replaceChildren(...answer.words.map((each, number) => {
      if (!each.shown) return document.createTextNode(each.word);
      const button = document.createElement("button");
      button.type = "button";
      button.append(each.word, document.createElement("i"));
      button.lastChild.style.transform =
        `scaleX(${0.06 + 0.94 * (each.strength - low) / span})`;
      button.title = `strength ${each.strength.toFixed(3)}`;
      button.dataset.number = number;
      button.addEventListener("click", () => choose(number === chosen ? -1 : number));
      return button;
    }));
    at("legend").hidden = false;
    // Articles and the like match anywhere: begin with another word where there is one.
    const telling = shown.filter((each) => each.content);
    const best = (telling.length ? telling : shown).reduce((a, b) => (b.strength > a.strength ? b : a));
    choose(answer.words.indexOf(best));
  }

  function choose(number) {
    chosen = number;
    for (const button of at("words").children) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.number) === number));
    }
    draw();
  }

  function clear() {
    chosen = -1;
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    canvas.removeAttribute("data-word");
  }

  // Regions are veiled by how little they match, so that the person's colours stay.
  function draw() {
    if (!answer || chosen < 0) return clear();
    const { word, cells } = answer.words[chosen];
    const most = Math.max(...cells.flat()) || 1;
    canvas.width = canvas.clientWidth * devicePixelRatio;
    canvas.height = canvas.clientHeight * devicePixelRatio;
    const high = canvas.height * answer.covered[0] / cells.length;
    const wide = canvas.width * answer.covered[1] / cells[0].length;
    const brush = canvas.getContext("2d");
    brush.clearRect(0, 0, canvas.width, canvas.height);
    cells.forEach((row, y) => row.forEach((value, x) => {
      brush.fillStyle = `rgba(11, 21, 48, ${0.84 * (1 - value / most)})`;
      const left = Math.round(x * wide), top = Math.round(y * high);
      brush.fillRect(left, top, Math.round((x + 1) * wide) - left,
                     Math.round((y + 1) * high) - top);
    }));
    canvas.dataset.word = word;
  }

  function step(by) {
    if (place + by >= 0 && place + by < results.length) show(place + by);
  }

  at("before").addEventListener("click", () => step(-1));
  at("after").addEventListener("click", () => step(1));
  at("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else return;
    event.preventDefault();
  });
  picture.addEventListener("load", draw);
  picture.addEventListener("error", () => {
    if (dialog.open) picture.alt = "This picture cannot be shown; search again.";
  });
  addEventListener("resize", draw);
  dialog.addEventListener("close", () => {
    asked += 1;
    document.querySelector(`#results button[data-place="${place}"]`)?.focus();
  });

  return {
    open(found, words, index) {
      ({ results, version } = found);
      sentence = words;
      dialog.showModal();
      show(index);
    },
  };
})();
