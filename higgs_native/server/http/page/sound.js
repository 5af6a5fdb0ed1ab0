"use strict";
// Sound without the page: playback of a stream, WAV files, and the two pictures.

const FFT_SIZE = 512;
const SECONDS_AHEAD = 0.15; // between a piece's arrival and its playback, so that the next one may be late

/** Plays pieces of samples one after another, as they come. */
class StreamPlayer {
  constructor(rate) {
    this.rate = rate;
    this.context = new AudioContext({ sampleRate: rate });
    this.end = 0;
    this.underRuns = 0;
  }

  /** Play samples (Float32Array) after all before them. */
  add(samples) {
    const now = this.context.currentTime;
    if (this.end < now) {
      if (this.end > 0) this.underRuns += 1;
      this.end = now + SECONDS_AHEAD;
    }
    const buffer = this.context.createBuffer(1, samples.length, this.rate);
    buffer.copyToChannel(samples, 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    source.start(this.end);
    this.end += buffer.duration;
  }

  /** Seconds until everything has been played. */
  get rest() {
    return Math.max(0, this.end - this.context.currentTime);
  }

  close() {
    if (this.context.state !== "closed") this.context.close();
  }
}

/** Return 16-bit samples as a mono WAV file. */
function wavBlob(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, value) => [...value].forEach((char, i) => view.setUint8(at + i, char.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, i) => view.setInt16(44 + 2 * i, value, true));
  return new Blob([view], { type: "audio/wav" });
}

/** Decode a file of any format that the browser plays, into a mono WAV file. */
async function asWav(blob) {
  const rate = 24000;
  const context = new OfflineAudioContext(1, 1, rate);
  const audio = await context.decodeAudioData(await blob.arrayBuffer());
  const mixed = new Int16Array(audio.length);
  const channels = Array.from({ length: audio.numberOfChannels }, (_, i) => audio.getChannelData(i));
  for (let i = 0; i < audio.length; i += 1) {
    const sum = channels.reduce((total, channel) => total + channel[i], 0) / channels.length;
    mixed[i] = Math.round(Math.max(-1, Math.min(1, sum)) * 32767);
  }
  return { wav: wavBlob(mixed, rate), seconds: audio.duration };
}

/** Return the magnitudes of FFT_SIZE real samples. */
function magnitudes(samples) {
  const real = Float32Array.from(samples, (x, i) => x * (0.5 - 0.5 * Math.cos((2 * Math.PI * i) / FFT_SIZE)));
  const imaginary = new Float32Array(FFT_SIZE);
  for (let i = 1, j = 0; i < FFT_SIZE; i += 1) {
    let bit = FFT_SIZE >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [real[i], real[j]] = [real[j], real[i]];
  }
  for (let size = 2; size <= FFT_SIZE; size *= 2) {
    for (let begin = 0; begin < FFT_SIZE; begin += size) {
      for (let k = 0; k < size / 2; k += 1) {
        const angle = (-2 * Math.PI * k) / size;
        const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
        const [a, b] = [begin + k, begin + k + size / 2];
        const [x, y] = [real[b] * cos - imaginary[b] * sin, real[b] * sin + imaginary[b] * cos];
        [real[b], imaginary[b]] = [real[a] - x, imaginary[a] - y];
        real[a] += x;
        imaginary[a] += y;
      }
    }
  }
  return real.slice(0, FFT_SIZE / 2).map((x, i) => Math.hypot(x, imaginary[i]));
}

/** A color between black, violet, orange and pale yellow. */
function heat(value) {
  const stops = [[14, 13, 19], [91, 35, 130], [220, 80, 90], [252, 165, 60], [252, 255, 190]];
  const place = Math.max(0, Math.min(0.9999, value)) * (stops.length - 1);
  const [low, high] = [stops[Math.floor(place)], stops[Math.floor(place) + 1]];
  return low.map((part, i) => part + (high[i] - part) * (place % 1));
}

/** Draws all samples so far, as a waveform and as a spectrogram, each over the whole width. */
class Pictures {
  constructor(waveform, spectrogram) {
    this.waveform = waveform;
    this.spectrogram = spectrogram;
    this.clear();
  }

  clear() {
    this.columns = [];
    this.step = FFT_SIZE / 2;
    for (const canvas of [this.waveform, this.spectrogram]) {
      canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    }
  }

  draw(samples) {
    while (samples.length > 2 * this.spectrogram.width * this.step) { // more columns than can be seen
      this.columns = this.columns.filter((_, index) => index % 2 === 0);
      this.step *= 2;
    }
    for (let at; (at = this.columns.length * this.step) + FFT_SIZE <= samples.length;) {
      this.columns.push(magnitudes(samples.subarray(at, at + FFT_SIZE)));
    }
    this.drawWaveform(samples);
    this.drawSpectrogram();
  }

  drawWaveform(samples) {
    const { width, height } = this.waveform;
    const context = this.waveform.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--wave");
    for (let x = 0; x < width; x += 1) {
      const part = samples.subarray(Math.floor((x * samples.length) / width), Math.floor(((x + 1) * samples.length) / width));
      const peak = part.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / 32768;
      const half = Math.max(0.5, (peak * height) / 2);
      context.fillRect(x, height / 2 - half, 1, 2 * half);
    }
  }

  drawSpectrogram() {
    const count = this.columns.length;
    if (!count) return;
    const rows = FFT_SIZE / 2;
    const image = new ImageData(count, rows);
    this.columns.forEach((column, x) => {
      for (let row = 0; row < rows; row += 1) {
        const decibel = 20 * Math.log10(column[rows - 1 - row] / 32768 + 1e-9);
        image.data.set([...heat((decibel + 50) / 80), 255], 4 * (row * count + x));
      }
    });
    const small = new OffscreenCanvas(count, rows);
    small.getContext("2d").putImageData(image, 0, 0);
    this.spectrogram.getContext("2d").drawImage(small, 0, 0, this.spectrogram.width, this.spectrogram.height);
  }
}
