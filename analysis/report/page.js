"use strict";
// Draws a figure when it comes into view, in the colours of the page and on the chosen axis of steps.
const TOKENS = JSON.parse(document.getElementById("tokens").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const axis = document.getElementById("axis");
let printing = false, paper = false; // on paper the page is narrower than the window that it is drawn in

// Colours that a dark ground swallows, and what stands for them.
const ON_DARK = {"#006644": "#f2f2f2", "#aa3377": "#bf3b7b", "#44546a": "#a3adb7"};
function parse(place) {
  let text = document.getElementById("figure-" + place.dataset.figure).textContent;
  if (dark.matches && !printing)
    for (const [given, seen] of Object.entries(ON_DARK)) text = text.replaceAll(given, seen);
  return JSON.parse(text);
}

// Typed arrays come in base64.
const KINDS = {f8: Float64Array, f4: Float32Array, i4: Int32Array, i2: Int16Array, i1: Int8Array,
  u4: Uint32Array, u2: Uint16Array, u1: Uint8Array};
function list(values) {
  if (!values || values.bdata === undefined) return values === undefined ? [] : Array.from(values);
  const bytes = Uint8Array.from(atob(values.bdata), c => c.charCodeAt(0));
  const flat = Array.from(new KINDS[values.dtype](bytes.buffer));
  if (!values.shape) return flat;
  const width = Number(String(values.shape).split(",").pop());
  return Array.from({length: flat.length / width}, (_, row) => flat.slice(row * width, (row + 1) * width));
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function themed(layout) {
  const ink = colour("--ink"), grid = colour("--grid");
  layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
  layout.font = {...layout.font, color: ink};
  layout.modebar = {orientation: "h", bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--accent")};
  for (const name of Object.keys(layout).filter(key => /^[xy]axis/.test(key)))
    Object.assign(layout[name], {automargin: true, gridcolor: grid, linecolor: colour("--soft"), zerolinecolor: grid});
  if (layout.yaxis) layout.yaxis.exponentformat = "e"; // not 1f for 1e-15
  return layout;
}

// Positions of steps: log10 with step 0 one place left of the first, or tokens seen.
function places(steps) {
  const positive = steps.filter(step => step > 0);
  const first = Math.min(...positive);
  if (axis.value === "log" && positive.length)
    return step => step > 0 ? Math.log10(step) : Math.log10(first) - 0.35;
  if (axis.value === "tokens") return step => TOKENS[step] ?? null;
  return step => step;
}

function short(number) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (number >= size) return Number((number / size).toPrecision(3)) + unit;
  return String(number);
}

function onSteps(figure, most) {
  const over = figure.data.filter(trace => trace.x !== undefined);
  const values = over.map(trace => list(trace.x).map(Number));
  const steps = [...new Set(values.flat())].sort((a, b) => a - b);
  const place = places(steps);
  over.forEach((trace, index) => {
    const at = values[index].map(place);
    trace.x = at;
    if (trace.type === "heatmap") {
      if (at.length < 2) return;
      const middle = at.slice(1).map((value, i) => (value + at[i]) / 2);
      trace.x = [2 * at[0] - middle[0], ...middle, 2 * at[at.length - 1] - middle[middle.length - 1]];
      trace.customdata = list(trace.z).map(() => values[index]);
      trace.hovertemplate = "step %{customdata}, %{y}: %{z:.4g}<extra></extra>";
    } else if (trace.hoverinfo !== "skip") {
      trace.customdata = values[index].map(step => short(step));
      trace.hovertemplate = "step %{customdata}: %{y:.4g}<extra>" + (trace.name || "") + "</extra>";
    }
  });
  const named = axis.value === "tokens" ? step => short(TOKENS[step] ?? 0) : step => short(step);
  const span = place(steps[steps.length - 1]) - place(steps[0]);
  const shown = [];
  for (const step of steps) {
    const last = shown[shown.length - 1];
    if (last === undefined || place(step) - place(last) >= span / most) shown.push(step);
  }
  Object.assign(figure.layout.xaxis, {type: "linear", tickvals: shown.map(place), ticktext: shown.map(named),
    title: {text: axis.value === "tokens" ? "tokens seen" : "optimizer step"}, autorange: true});
}

function pick(figure, place) {
  const names = [...new Set(figure.data.map(trace => trace.meta && trace.meta.pick).filter(Boolean))];
  if (!names.length) return;
  let chooser = place.parentNode.querySelector("select.pick");
  if (!chooser) {
    chooser = document.createElement("select");
    chooser.className = "pick";
    chooser.setAttribute("aria-label", "choose");
    for (const name of names) chooser.add(new Option(name));
    chooser.addEventListener("change", () => draw(place));
    place.parentNode.insertBefore(chooser, place);
  }
  for (const trace of figure.data) trace.visible = !trace.meta || !trace.meta.pick || trace.meta.pick === chooser.value;
}

const ruler = document.createElement("canvas").getContext("2d");
function widest(texts, size) {
  ruler.font = size + "px " + getComputedStyle(document.body).fontFamily;
  return Math.max(0, ...texts.map(text => ruler.measureText(text).width));
}

// A title that is too wide is broken, which plotly does not do; numbers that do not fit into their cells are left out.
function fit(figure, width) {
  const title = figure.layout.title;
  if (title && widest([title.text], 14) > width - 20) {
    const lines = [""];
    for (const word of title.text.split(" "))
      if (widest([lines[0] + " " + word], 14) > width - 20) lines.unshift(word);
      else lines[0] = (lines[0] + " " + word).trim();
    title.text = lines.reverse().join("<br>");
    figure.layout.margin.t += 18 * (lines.length - 1);
  }
  for (const trace of figure.data)
    if (trace.text && trace.type === "heatmap") {
      const cell = (width - 190) / list(trace.x).length;
      if (widest(list(trace.text).flatMap(row => list(row)), trace.textfont.size) > cell - 1) trace.texttemplate = "";
    }
}

function draw(place) {
  const figure = parse(place);
  const width = paper ? (place.closest(".single, .broad") ? 690 : 335) : place.clientWidth;
  if (figure.layout.meta && figure.layout.meta.axis === "step") onSteps(figure, width < 600 ? 7 : 9);
  pick(figure, place);
  fit(figure, width);
  place.dataset.drawn = "yes";
  if (paper) Object.assign(figure.layout, {width, height: (figure.layout.height || 380) - 80, autosize: false});
  if (width < 460) {
    const rows = Math.ceil(figure.data.filter(trace => trace.name && trace.visible !== false).length / 3);
    const place = {orientation: "h", yref: "container", y: 0.01, yanchor: "bottom", x: 0};
    figure.layout.legend = {...figure.layout.legend, ...place};
    figure.layout.margin = {...figure.layout.margin, l: 48, r: 12, b: 48 + 20 * rows};
    figure.layout.height = (figure.layout.height || 380) + 20 * rows;
  }
  return Plotly.react(place, figure.data, themed(figure.layout),
    {responsive: !paper, displaylogo: false, displayModeBar: printing || width < 460 ? false : "hover",
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]]});
}

const all = () => [...document.querySelectorAll(".figure")];
const redraw = () => all().filter(place => place.dataset.drawn).forEach(draw);

const seen = new IntersectionObserver(entries => {
  for (const entry of entries)
    if (entry.isIntersecting) {
      seen.unobserve(entry.target);
      draw(entry.target);
    }
}, {rootMargin: "200px"});

function csv(place) {
  const rows = [["trace", "x", "y", "value", "low", "high"]];
  for (const trace of parse(place).data) {
    const x = list(trace.x), y = list(trace.y), z = list(trace.z);
    if (z.length) z.forEach((row, i) => list(row).forEach((value, j) => rows.push([trace.name || "", x[j], y[i], value, "", ""])));
    else if (Array.isArray(x[0]) && x.length === 2)
      x[0].forEach((group, i) => rows.push([trace.name || "", group + " " + x[1][i], y[i], y[i], "", ""]));
    else {
      const up = list(trace.error_y && trace.error_y.array), down = list(trace.error_y && trace.error_y.arrayminus);
      x.forEach((value, i) => rows.push([trace.name || "", value, y[i], y[i],
        down.length ? y[i] - down[i] : "", up.length ? y[i] + up[i] : ""]));
    }
  }
  const quoted = cell => /[",\n]/.test(String(cell)) ? '"' + String(cell).replaceAll('"', '""') + '"' : String(cell ?? "");
  return rows.map(row => row.map(quoted).join(",")).join("\n") + "\n";
}

for (const button of document.querySelectorAll("button.csv"))
  button.addEventListener("click", () => {
    const place = button.closest("figure").querySelector(".figure");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(place)], {type: "text/csv"}));
    link.download = place.getAttribute("aria-label").replace(/[^\w]+/g, "_") + ".csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });

function element(tag, text = "", parent = null, name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  if (parent) parent.append(made);
  return made;
}

// A concept's units: a fold each, with AP by language and the sentences that move it most.
for (const place of document.querySelectorAll(".units")) {
  const concepts = JSON.parse(place.querySelector("script").textContent);
  const chooser = element("select", "", place, "pick");
  chooser.setAttribute("aria-label", "concept");
  for (const name of Object.keys(concepts)) chooser.add(new Option(name));
  const shown = element("div", "", place);
  const show = () => {
    shown.replaceChildren();
    element("h3", chooser.value, shown, "onpaper"); // where the picker is left out
    concepts[chooser.value].forEach((unit, number) => {
      const fold = element("details", "", shown, "unit");
      fold.open = number === 0;
      const head = element("summary", unit.name, fold);
      element("span", ` expert in ${unit.num_languages} of ${Object.keys(unit.ap).length} languages`, head, "soft");
      const bars = element("div", "", fold, "bars");
      for (const [language, ap] of Object.entries(unit.ap)) {
        const bar = element("div", `${language} ${ap.toFixed(2)}`, bars);
        bar.style.setProperty("--share", `${100 * ap}%`);
      }
      const table = element("tbody", "", element("table", "", element("div", "", fold, "wide")));
      for (const [language, response, positive, text] of unit.sentences) {
        const row = element("tr", "", table, positive ? "positive" : "");
        element("td", language, row);
        element("td", text, row, "text");
        element("td", response.toPrecision(3), row);
      }
    });
  };
  chooser.addEventListener("change", show);
  show();
}

for (const input of document.querySelectorAll("input.filter"))
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase();
    for (const row of input.nextElementSibling.querySelectorAll("tbody tr"))
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });

const steps = Object.keys(TOKENS).map(Number).sort((a, b) => a - b).filter(step => step > 0);
if (Object.values(TOKENS).some(value => value === null)) axis.querySelector("[value=tokens]").remove();
if (steps.length > 3 && steps[steps.length - 1] / steps[0] > 30) axis.value = "log";
document.getElementById("steps").hidden = !all().some(place => (parse(place).layout.meta || {}).axis === "step");
axis.addEventListener("change", redraw);
dark.addEventListener("change", redraw);
addEventListener("beforeprint", () => {
  printing = paper = true;
  all().filter(place => place.clientWidth).forEach(draw);
});
addEventListener("afterprint", () => {
  printing = paper = false;
  redraw();
});
if (["#all", "#paper"].includes(location.hash)) { // a picture or a PDF is made of the page
  paper = location.hash === "#paper";
  printing = true;
  document.querySelectorAll("details.fold").forEach(fold => fold.open = true);
  all().forEach(draw);
} else all().forEach(place => seen.observe(place));
