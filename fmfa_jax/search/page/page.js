// SPDX-License-Identifier: Apache-2.0
// The search itself: one state, written to the address, drawn anew after each answer.
"use strict";

const $ = (id) => document.getElementById(id);
const state = { sentence: "", example: "", minimum: null, page: 0 };
let limits = { page: 20, letters: 1000, upload: 8 * 2 ** 20 };
let asked = 0;

async function request(path, options, tries = 4) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer. Is it still running?");
  }
  if (response.status === 503 && tries > 0) {
    $("status").textContent = "The server is busy; trying again …";
    await new Promise((resolve) => setTimeout(resolve, 1000));
    return request(path, options, tries - 1);
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `The server says ${response.status}.`);
  return answer;
}

function ask(path, values) {
  return request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(values),
  });
}

async function search({ remember = "push", focus = false } = {}) {
  const mine = ++asked;
  if (!state.sentence.trim() && !state.example) return showEmpty();
  if (remember !== "none") writeAddress(remember);
  setBusy("Searching …");
  const offset = state.page * limits.page;
  try {
    const { sentence, example, minimum } = state;
    const answer = await ask("api/search", {
      sentence, example, minimum, offset, limit: limits.page,
    });
    if (mine !== asked) return;
    showResults(answer, offset);
    if (focus) $("results").querySelector("button")?.focus();
  } catch (error) {
    if (mine === asked) showFailure(error.message);
  }
}

function show(section) {
  document.body.classList.remove("busy");
  $("results").removeAttribute("aria-busy");
  for (const id of ["empty", "failure", "nothing"]) $(id).hidden = id !== section;
  if (section) {
    $("results").replaceChildren();
    $("pages").hidden = true;
    $("status").textContent = "";
  }
}

function setBusy(text) {
  document.body.classList.add("busy");
  $("results").setAttribute("aria-busy", "true");
  $("status").textContent = text;
  $("empty").hidden = $("failure").hidden = $("nothing").hidden = true;
}

function showEmpty() {
  show("empty");
  $("filter").hidden = true;
}

function showFailure(text) {
  show("failure");
  $("failure-text").textContent = text;
}

function showResults(answer, offset) {
  showFilter(answer);
  if (!answer.results.length) {
    show("nothing");
    $("nothing-text").textContent = offset
      ? "There are no pictures on this page."
      : `No picture reaches a similarity of ${state.minimum.toFixed(3)}; `
        + `the best has ${answer.highest.toFixed(3)}.`;
    return;
  }
  show(null);
  const last = offset + answer.results.length;
  $("status").textContent =
    `Pictures ${offset + 1} to ${last} of ${answer.matches.toLocaleString("en")}`
    + (answer.cut ? `; the sentence was cut off after ${answer.cut} words` : "");
  $("results").replaceChildren(...answer.results.map((hit, place) => tile(hit, place, answer)));
  const pages = Math.ceil(answer.reachable / limits.page);
  $("pages").hidden = pages < 2;
  $("page").textContent = `Page ${state.page + 1} of ${pages}`;
  $("previous").disabled = state.page === 0;
  $("next").disabled = state.page + 1 >= pages;
}

function tile(hit, place, answer) {
  const item = document.createElement("li"), button = document.createElement("button");
  button.type = "button";
  button.dataset.place = place;
  button.tabIndex = place === 0 ? 0 : -1;
  const label = `Rank ${hit.rank}, similarity ${hit.similarity.toFixed(3)}, ${hit.file}`;
  button.setAttribute("aria-label", label);
  button.title = hit.file;
  const picture = new Image();
  picture.loading = "lazy";
  picture.alt = "";
  picture.src = `.${hit.picture}/small`;
  let tries = 3; // the server may be busy
  picture.addEventListener("error", () => {
    if (tries-- > 0) setTimeout(() => { picture.src = `.${hit.picture}/small`; }, 1000);
    else picture.alt = "Cannot be shown; search again";
  });
  const text = part("span", "text");
  const meter = part("span", "meter");
  const span = answer.highest - answer.lowest || 1;
  meter.append(document.createElement("i"));
  meter.firstChild.style.width = `${Math.max(0, 100 * (hit.similarity - answer.lowest) / span)}%`;
  const name = part("span", "name");
  name.append(document.createElement("bdi"));
  name.firstChild.textContent = hit.file;
  text.append(part("span", "rank", `${hit.rank}`),
              part("span", "cosine", hit.similarity.toFixed(3)), meter, name);
  button.append(picture, text);
  button.addEventListener("click", () => detail.open(answer, state.sentence, place));
  item.append(button);
  return item;
}

function part(tag, kind, text = "") {
  const made = document.createElement(tag);
  made.className = kind;
  made.textContent = text;
  return made;
}

// The slider runs over the similarities of this query; far left: all pictures, far right: the best.
function showFilter({ lowest, highest }) {
  const slider = $("minimum");
  $("filter").hidden = false;
  slider.min = Math.floor(lowest * 200) / 200;
  slider.max = Math.floor(highest * 200) / 200;
  slider.value = state.minimum ?? slider.min;
  $("minimum-shown").textContent = state.minimum === null ? "all" : state.minimum.toFixed(3);
}

function setMinimum() {
  const slider = $("minimum");
  state.minimum = Number(slider.value) <= Number(slider.min) ? null : Number(slider.value);
  $("minimum-shown").textContent = state.minimum === null ? "all" : state.minimum.toFixed(3);
}

async function takeExample(file) {
  if (!file) return;
  if (file.size > limits.upload) {
    showFailure(`${file.name} has ${(file.size / 2 ** 20).toFixed(1)} MB, at most `
      + `${limits.upload / 2 ** 20} MB are taken.`);
    return;
  }
  const mine = ++asked;
  setBusy("Reading the example picture …");
  try {
    const answer = await request("api/example", {
      method: "POST",
      headers: { "Content-Type": "application/octet-stream" },
      body: file,
    });
    if (mine !== asked) return;
    forget();
    state.example = answer.example;
    $("example-picture").src = URL.createObjectURL(file);
    $("example-name").textContent = file.name;
    $("example").hidden = false;
    begin();
  } catch (error) {
    if (mine === asked) showFailure(error.message);
  } finally {
    $("file").value = "";
  }
}

function forget() {
  URL.revokeObjectURL($("example-picture").src);
  $("example").hidden = true;
  state.example = "";
}

function begin(focus = false) {
  state.sentence = $("sentence").value;
  state.page = 0;
  state.minimum = null;
  search({ focus });
}

function turn(by) {
  state.page += by;
  search({ focus: true });
  scrollTo({ top: 0 });
}

// An example picture is forgotten by the server one day, so no address names it.
function writeAddress(how) {
  const values = new URLSearchParams();
  if (state.sentence.trim()) values.set("q", state.sentence);
  if (state.minimum !== null) values.set("min", state.minimum);
  if (state.page) values.set("page", state.page + 1);
  const address = `#${values}`;
  if (address !== location.hash) history[`${how}State`](null, "", address);
}

function readAddress() {
  const values = new URLSearchParams(location.hash.slice(1));
  const minimum = Number.parseFloat(values.get("min"));
  state.sentence = (values.get("q") || "").slice(0, limits.letters);
  state.minimum = Number.isFinite(minimum) ? minimum : null;
  state.page = Math.max(0, (Number.parseInt(values.get("page"), 10) || 1) - 1);
  $("sentence").value = state.sentence;
  forget();
  search({ remember: "none" });
}

// Arrow keys move through the tiles as they lie on the screen.
function moveFocus(event) {
  const tiles = [...$("results").querySelectorAll("button")];
  const here = tiles.indexOf(document.activeElement);
  if (here < 0) return;
  const across = tiles.filter((each) => each.offsetTop === tiles[0].offsetTop).length;
  const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
  const there = event.key === "Home" ? 0 : event.key === "End" ? tiles.length - 1
    : here + (steps[event.key] ?? Number.NaN);
  if (!tiles[there]) return;
  event.preventDefault();
  tiles[here].tabIndex = -1;
  tiles[there].tabIndex = 0;
  tiles[there].focus();
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  begin(true);
});
$("file").addEventListener("change", (event) => takeExample(event.target.files[0]));
$("forget").addEventListener("click", () => { forget(); begin(); $("file").focus(); });
$("minimum").addEventListener("input", setMinimum);
$("minimum").addEventListener("change", () => { state.page = 0; search({ remember: "replace" }); });
$("all").addEventListener("click", () => { state.minimum = null; state.page = 0; search(); });
$("again").addEventListener("click", () => search({ remember: "none" }));
$("previous").addEventListener("click", () => turn(-1));
$("next").addEventListener("click", () => turn(1));
$("results").addEventListener("keydown", moveFocus);
for (const button of $("examples").querySelectorAll("button")) {
  button.addEventListener("click", () => {
    $("sentence").value = button.textContent;
    begin();
  });
}
addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, dialog");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  $("sentence").focus();
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  takeExample(event.dataTransfer.files[0]);
});
addEventListener("popstate", readAddress);

(async () => {
  try {
    limits = await request("api/gallery");
    $("sentence").maxLength = limits.letters;
    $("about").textContent = `${limits.pictures.toLocaleString("en")} pictures in ${limits.name}`
      + (limits.engine === "faiss" ? ", searched approximately" : "");
    readAddress();
  } catch (error) {
    showFailure(error.message);
  }
})();
