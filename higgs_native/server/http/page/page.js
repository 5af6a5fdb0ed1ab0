"use strict";
// The page: it writes requests, and shows what comes back.

const RATE = 24000;
const OWN = " own recording";
const $ = (id) => document.getElementById(id);
const pictures = new Pictures($("waveform"), $("spectrogram"));
const state = { voices: [], speaking: null, player: null, reference: null, recorder: null };

function tell(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

/** Call the server; errors are thrown with its message. */
async function call(path, options = {}) {
  const key = $("key").value.trim();
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers });
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    const wait = response.headers.get("retry-after");
    throw new Error((answer?.error?.message ?? `status ${response.status}`) + (wait ? ` (try again in ${wait} s)` : ""));
  }
  return response;
}

// Turns

function fillVoices(select) {
  const chosen = select.value;
  const groups = { recording: "Recordings", description: "Descriptions", alias: "OpenAI's names" };
  select.replaceChildren();
  if (state.reference) select.append(new Option("Your recording", OWN));
  for (const [kind, label] of Object.entries(groups)) {
    const voices = state.voices.filter((voice) => voice.kind === kind);
    if (!voices.length) continue;
    const group = document.createElement("optgroup");
    group.label = label;
    group.append(...voices.map((voice) => new Option(voice.name, voice.id)));
    select.append(group);
  }
  if ([...select.options].some((option) => option.value === chosen)) select.value = chosen;
}

function turns() {
  return [...$("turns").children].map((row) => ({
    row,
    select: row.querySelector("select"),
    text: row.querySelector("textarea"),
  }));
}

function numberTurns() {
  turns().forEach(({ row, select, text }, index) => {
    select.setAttribute("aria-label", `Voice of turn ${index + 1}`);
    text.setAttribute("aria-label", `Text of turn ${index + 1}`);
    row.querySelector(".drop").setAttribute("aria-label", `Remove turn ${index + 1}`);
  });
  const characters = turns().reduce((sum, turn) => sum + turn.text.value.length, 0);
  $("count").textContent = `${characters} characters`;
}

function addTurn(text = "") {
  const row = $("turn").content.firstElementChild.cloneNode(true);
  fillVoices(row.querySelector("select"));
  row.querySelector("textarea").value = text;
  row.querySelector("textarea").addEventListener("input", numberTurns);
  row.querySelector("select").addEventListener("change", showDeletable);
  row.querySelector(".drop").addEventListener("click", () => {
    row.remove();
    numberTurns();
    $("turns").querySelector("textarea").focus();
  });
  $("turns").append(row);
  numberTurns();
  return row;
}

async function loadVoices() {
  state.voices = (await (await call("v1/audio/voices")).json()).voices;
  turns().forEach(({ select }) => fillVoices(select));
  showDeletable();
}

function showDeletable() {
  const voice = state.voices.find(({ id }) => id === turns()[0]?.select.value);
  $("remove").disabled = voice?.kind !== "recording";
}

// Speaking

/** Return the body of the request, as a form if it holds a recording. */
function request() {
  const spoken = turns().filter(({ text }) => text.value.trim());
  if (!spoken.length) throw new Error("Write a text first.");
  const voices = [...new Set(spoken.map(({ select }) => select.value))];
  const several = voices.length > 1;
  if (several && voices.includes(OWN)) throw new Error("Keep your recording as a voice to use it in a dialogue.");
  const parts = spoken.map(({ select, text }) =>
    several ? `[SPEAKER${voices.indexOf(select.value)}] ${text.value.trim()}` : text.value.trim());
  const fields = {
    input: parts.join("\n\n"),
    response_format: "pcm",
    speed: $("speed").value || "1",
    temperature: $("temperature").value || "0.3",
    ...($("seed").value.trim() && { seed: $("seed").value.trim() }),
    ...($("scene").value.trim() && { instructions: $("scene").value.trim() }),
  };
  const form = new FormData();
  Object.entries(fields).forEach(([name, value]) => form.append(name, value));
  if (voices[0] === OWN) {
    form.append("ref_audio", state.reference, "recording.wav");
    if ($("words").value.trim()) form.append("ref_text", $("words").value.trim());
  } else {
    voices.filter(Boolean).forEach((voice) => form.append("voice", voice));
  }
  return form;
}

async function speak() {
  stop();
  let body;
  try {
    body = request();
  } catch (error) {
    tell(error.message, true);
    return;
  }
  const speaking = new AbortController();
  const player = new StreamPlayer(RATE);
  Object.assign(state, { speaking, player });
  $("stop").disabled = false;
  $("download").hidden = $("audio").hidden = true;
  pictures.clear();
  tell("Speaking ...");
  const began = performance.now();
  let samples = new Int16Array(RATE);
  let count = 0;
  try {
    const response = await call("v1/audio/speech", { method: "POST", body, signal: speaking.signal });
    const seed = response.headers.get("x-seed");
    let first = null;
    let odd = new Uint8Array(0);
    for (const reader = response.body.getReader(); ;) {
      const { done, value } = await reader.read();
      if (done) break;
      first ??= (performance.now() - began) / 1000;
      const bytes = new Uint8Array(odd.length + value.length);
      bytes.set(odd);
      bytes.set(value, odd.length);
      const piece = new Int16Array(bytes.buffer, 0, bytes.length >> 1);
      odd = bytes.slice(2 * piece.length);
      if (count + piece.length > samples.length) {
        const larger = new Int16Array(2 * (count + piece.length));
        larger.set(samples.subarray(0, count));
        samples = larger;
      }
      samples.set(piece, count);
      count += piece.length;
      player.add(Float32Array.from(piece, (value) => value / 32768));
      pictures.draw(samples.subarray(0, count));
      tell(`${(count / RATE).toFixed(1)} s of speech, the first after ${first.toFixed(2)} s, seed ${seed}.`);
    }
    finish(samples.slice(0, count));
    const pauses = player.underRuns ? `, with ${player.underRuns} pauses` : "";
    tell(`${(count / RATE).toFixed(1)} s of speech, the first after ${first.toFixed(2)} s${pauses}, seed ${seed}.`);
    setTimeout(() => { if (state.player === player) stop(); }, 1000 * player.rest + 200);
  } catch (error) {
    if (state.speaking !== speaking) return; // it was stopped
    if (count) finish(samples.slice(0, count));
    stop();
    tell(`It failed: ${error.message}`, true);
  }
}

function finish(samples) {
  const url = URL.createObjectURL(wavBlob(samples, RATE));
  if ($("audio").src) URL.revokeObjectURL($("audio").src);
  $("audio").src = $("download").href = url;
  $("audio").hidden = $("download").hidden = false;
}

function stop() {
  const { speaking, player } = state;
  Object.assign(state, { speaking: null, player: null });
  speaking?.abort();
  player?.close();
  $("stop").disabled = true;
}

// A voice of one's own

async function useRecording(blob, name) {
  try {
    const { wav, seconds } = await asWav(blob);
    state.reference = wav;
    $("reference").src = URL.createObjectURL(wav);
    $("recorded").textContent = `${name}, ${seconds.toFixed(1)} s`;
  } catch {
    $("recorded").textContent = `${name} is no audio that this browser reads.`;
    return;
  }
  $("reference").hidden = $("forget").hidden = $("keep").disabled = false;
  turns().forEach(({ select }) => fillVoices(select));
  turns()[0].select.value = OWN;
  await advise();
}

async function advise() {
  if (!state.reference) return;
  try {
    const answer = await (await call("v1/audio/voices/check", { method: "POST", body: voiceForm() })).json();
    showAdvice(answer.advice.length ? answer.advice : ["The recording is good."]);
  } catch (error) {
    showAdvice([error.message]);
  }
}

function voiceForm() {
  const form = new FormData();
  form.append("audio_sample", state.reference, "recording.wav");
  form.append("ref_text", $("words").value);
  return form;
}

function showAdvice(lines) {
  $("advice").replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
}

function forget() {
  state.reference = null;
  $("reference").hidden = $("forget").hidden = $("keep").disabled = true;
  $("recorded").textContent = "No recording.";
  showAdvice([]);
  turns().forEach(({ select }) => fillVoices(select));
}

async function keep() {
  const form = voiceForm();
  form.append("name", $("name").value.trim());
  try {
    const voice = await (await call("v1/audio/voices", { method: "POST", body: form })).json();
    await loadVoices();
    turns()[0].select.value = voice.id;
    showDeletable();
    showAdvice([`The voice ${voice.name} is kept.`, ...voice.advice]);
  } catch (error) {
    showAdvice([error.message]);
  }
}

async function remove() {
  const id = turns()[0].select.value;
  if (!confirm(`Delete the voice ${id}?`)) return;
  try {
    await call(`v1/audio/voices/${encodeURIComponent(id)}`, { method: "DELETE" });
    showAdvice([`The voice ${id} is deleted.`]);
    await loadVoices();
  } catch (error) {
    showAdvice([error.message]);
  }
}

async function record() {
  if (state.recorder) {
    state.recorder.stop();
    return;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: { noiseSuppression: false, autoGainControl: false } });
  } catch (error) {
    $("recorded").textContent = `The microphone can't be used: ${error.message}`;
    return;
  }
  const recorder = new MediaRecorder(stream);
  const parts = [];
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.addEventListener("stop", () => {
    stream.getTracks().forEach((track) => track.stop());
    state.recorder = null;
    $("record").textContent = "Record";
    $("record").setAttribute("aria-pressed", "false");
    useRecording(new Blob(parts, { type: recorder.mimeType }), "Your recording");
  });
  recorder.start();
  state.recorder = recorder;
  $("record").textContent = "Stop the recording";
  $("record").setAttribute("aria-pressed", "true");
  $("recorded").textContent = "Recording ...";
}

async function begin() {
  addTurn("The sun rises in the east.");
  try {
    await loadVoices();
    const models = (await (await call("v1/models")).json()).data;
    $("model").textContent = models[0].id;
  } catch (error) {
    tell(error.message, true);
  }
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); speak(); });
$("stop").addEventListener("click", () => { stop(); tell("Stopped."); });
$("add-turn").addEventListener("click", () => addTurn().querySelector("textarea").focus());
$("file").addEventListener("change", () => { const [file] = $("file").files; if (file) useRecording(file, file.name); });
$("record").addEventListener("click", record);
$("forget").addEventListener("click", forget);
$("keep").addEventListener("click", keep);
$("remove").addEventListener("click", remove);
$("words").addEventListener("change", advise);
$("key").addEventListener("change", () => { tell("Ready."); loadVoices().catch((error) => tell(error.message, true)); });
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); speak(); }
  if (event.key === "Escape" && state.speaking) { stop(); tell("Stopped."); }
});
begin();
