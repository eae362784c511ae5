// Looks: colours by theme, dashes by run, axes, numbers and text for plotly. One object `hbp` holds all of the page.
"use strict";
const hbp = {data: JSON.parse(document.getElementById("data").textContent)};

hbp.dashes = ["solid", "dash", "dot", "dashdot"];
hbp.visible = hbp.data.runs.map(() => true);

// A colour of the style sheet.
hbp.colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
hbp.runColour = run => hbp.colour("run" + run % 8);
hbp.runDash = run => hbp.dashes[(run + Math.floor(run / 8)) % 4];

// "#rrggbb" with an opacity.
hbp.faded = (colour, opacity) => {
  const part = at => parseInt(colour.slice(at, at + 2), 16);
  return `rgba(${part(1)},${part(3)},${part(5)},${opacity})`;
};

// Text for plotly, which reads some tags and entities of HTML: nothing of a name is one. Long ones lose their middle.
hbp.text = (text, most = 60) => {
  const characters = Array.from(text);
  const half = Math.floor((most - 1) / 2);
  const short = characters.length > most
    ? characters.slice(0, half).join("") + "\u2026" + characters.slice(-half).join("") : text;
  return short.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%\{/g, "%&#123;");
};

hbp.number = value => {
  if (value === null || value === undefined || Number.isNaN(value)) return "not finite";
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  return size >= 1e-4 && size < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(3).replace(/\.?0+e/, "e");
};

hbp.shown = chart => chart.runs.map((data, run) => ({data, run})).filter(({data, run}) => data && hbp.visible[run]);

// What curves are drawn against: steps, or the time since the run started, between whose known values lines are drawn.
hbp.clock = {unit: "step", seconds: 1};
hbp.units = [["seconds", 1], ["minutes", 60], ["hours", 3600]];
hbp.setClock = byTime => {
  const last = Math.max(0, ...hbp.data.runs.map(run => run.clock.seconds[run.clock.seconds.length - 1] || 0));
  const [unit, seconds] = byTime ? hbp.units[last > 7200 ? 2 : last > 300 ? 1 : 0] : ["step", 1];
  hbp.clock = {unit, seconds};
};
hbp.timeOf = (run, step) => {
  const {steps, seconds} = hbp.data.runs[run].clock, after = steps.findIndex(known => known >= step);
  if (after <= 0) return seconds[after < 0 ? seconds.length - 1 : 0];
  const share = (step - steps[after - 1]) / (steps[after] - steps[after - 1]);
  return seconds[after - 1] + share * (seconds[after] - seconds[after - 1]);
};
hbp.clocked = (curve, run) => {
  if (hbp.clock.unit === "step") return curve;
  const times = steps => steps.map(step => Number((hbp.timeOf(run, step) / hbp.clock.seconds).toPrecision(6)));
  return {...curve, steps: times(curve.steps), notFinite: curve.notFinite && {...curve.notFinite, steps: times(curve.notFinite.steps)}};
};

// The axes' common looks; options are added to them.
hbp.axis = options => ({
  gridcolor: hbp.colour("grid"), linecolor: hbp.colour("line"), zerolinecolor: hbp.colour("line"),
  tickfont: {color: hbp.colour("quiet"), size: 11}, title: {font: {color: hbp.colour("quiet"), size: 11}},
  exponentformat: "power", automargin: true, ...options,
});
hbp.title = text => ({text, font: {color: hbp.colour("quiet"), size: 11}, standoff: 6});

hbp.touch = matchMedia("(pointer: coarse)").matches;

hbp.layout = options => ({
  paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: {l: 46, r: 12, t: 8, b: 34},
  font: {family: getComputedStyle(document.body).fontFamily, color: hbp.colour("ink"), size: 12},
  hoverlabel: {bgcolor: hbp.colour("card"), bordercolor: hbp.colour("line"), font: {color: hbp.colour("ink"), size: 12},
               align: "left", namelength: -1},
  showlegend: false, dragmode: hbp.touch ? false : "zoom", hovermode: "closest", uirevision: "kept",
  modebar: {bgcolor: "rgba(0,0,0,0)", color: hbp.colour("other"), activecolor: hbp.colour("accent"), orientation: "v"},
  legend: {font: {color: hbp.colour("quiet"), size: 11}, orientation: "h", x: 0, y: 1, yanchor: "bottom",
           bgcolor: "rgba(0,0,0,0)"}, ...options,
});

hbp.config = {
  displaylogo: false, displayModeBar: hbp.touch ? false : "hover", doubleClick: "autosize",
  modeBarButtons: [["resetScale2d", "toImage"]],
};

// Columns of colours for heatmaps: dark to bright on dark paper, pale to dark on light paper.
hbp.scale = () => document.documentElement.dataset.theme === "dark"
  ? [[0, "#16202e"], [0.25, "#274b7a"], [0.5, "#2f86a8"], [0.75, "#6cc7a1"], [1, "#f4eb8c"]]
  : [[0, "#f3f6fa"], [0.25, "#b9d3ea"], [0.5, "#5fa0cf"], [0.75, "#2a5fa5"], [1, "#10264f"]];
hbp.diverging = () => document.documentElement.dataset.theme === "dark"
  ? [[0, "#ff9a5c"], [0.5, "#20262f"], [1, "#7fabff"]] : [[0, "#b3470d"], [0.5, "#f6f6f6"], [1, "#1f56c3"]];
