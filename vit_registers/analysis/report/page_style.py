"""The style and the script of the report's page. The script sorts tables; without it the page is complete."""

STYLE = """
:root { color-scheme: light dark; --ink: #1a202c; --paper: #ffffff; --line: #cbd5e0; --soft: #f1f5f9;
  --quiet: #4a5568; --link: #2a5f9e; --gap: #8a4b08; }
@media (prefers-color-scheme: dark) { :root { --ink: #e2e8f0; --paper: #171923; --line: #4a5568;
  --soft: #232733; --quiet: #a9b4c4; --link: #90cdf4; --gap: #f6ad55; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.45 system-ui, sans-serif;
  overflow-wrap: break-word; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -100rem; background: var(--paper); padding: 0.5rem; z-index: 2; }
.skip:focus { left: 0; }
main { padding: 0 1rem 2rem; }
h1 { margin: 0.8rem 0 0.3rem; font-size: 1.6rem; }
h2 { margin: 1.5rem 0 0.5rem; border-top: 2px solid var(--line); padding-top: 0.6rem; font-size: 1.35rem; }
h3 { margin: 0 0 0.1rem; font-size: 1.05rem; }
h4, h5 { margin: 0.6rem 0 0.2rem; font-size: 0.85rem; }
h5 { font-weight: 400; }
p { margin: 0.3rem 0; }
nav { position: sticky; top: 0; z-index: 1; background: var(--paper); border-bottom: 1px solid var(--line);
  font-size: 0.9rem; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav > ul { display: flex; overflow-x: auto; white-space: nowrap; padding: 0.3rem 1rem; gap: 1rem; }
nav a { display: inline-block; padding: 0.3rem 0; text-decoration: none; }
nav a:hover { text-decoration: underline; }
nav ul ul { display: none; }
.here { font-size: 0.9rem; display: flex; flex-wrap: wrap; gap: 0 1rem; list-style: none; padding: 0;
  margin: 0.2rem 0 0.6rem; }
.here a { padding: 0.15rem 0; display: inline-block; }
section { border-top: 1px solid var(--line); padding: 0.5rem 0; }
.name { font-size: 0.8rem; font-weight: 400; color: var(--quiet); margin-left: 0.4rem;
  white-space: nowrap; }
.finding { border-left: 4px solid var(--link); padding-left: 0.8rem; margin: 0.4rem 0; }
.findings { list-style: none; padding: 0; }
.findings ul { padding-left: 1.2rem; margin: 0 0 0.4rem; }
.quiet { color: var(--quiet); font-size: 0.85rem; }
.gap, .caution { color: var(--gap); font-size: 0.85rem; }
.pictures { display: flex; flex-wrap: wrap; gap: 0.8rem 1.2rem; align-items: flex-start; }
figure { margin: 0.4rem 0; max-width: 100%; min-width: min(16rem, 100%); }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff; border-radius: 4px; }
figcaption { font-size: 0.8rem; color: var(--quiet); }
details { margin: 0.3rem 0; max-width: 100%; }
details[open] { flex-basis: 100%; }
.more { display: flex; flex-wrap: wrap; gap: 0 1.4rem; font-size: 0.9rem; }
summary h3 { display: inline; color: var(--ink); }
summary { cursor: pointer; color: var(--link); padding: 0.2rem 0; }
.scroll { overflow-x: auto;  /* a shadow at the right edge while columns are hidden there */
  background: linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--line), transparent) right / 0.7rem 100% no-repeat; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { border-bottom: 1px solid var(--line); padding: 0.2rem 0.8rem 0.2rem 0; text-align: left;
  white-space: nowrap; }
.models th { white-space: normal; vertical-align: bottom; min-width: 7rem; font-weight: 600; }
th { background: var(--soft); }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 3px solid var(--link); }
th button::after { content: " \\2195"; color: var(--quiet); }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.published { border-left: 4px solid var(--line); padding: 0 0 0.4rem 1rem; background: var(--soft); }
.top { font-size: 0.85rem; }
@media (min-width: 62rem) {
  body { display: grid; grid-template-columns: 13.5rem minmax(0, 1fr); }
  main { max-width: 66rem; padding: 0 1.5rem 2rem; }
  nav { height: 100vh; overflow-y: auto; border-bottom: 0; border-right: 1px solid var(--line);
    font-size: 0.85rem; }
  nav > ul { display: block; white-space: normal; padding: 0.8rem; overflow: visible; }
  nav ul ul { display: block; padding-left: 0.7rem; }
  nav a { padding: 0.05rem 0; }
  nav > ul > li { margin-bottom: 0.4rem; }
  html { scroll-padding-top: 0.5rem; }
}
@media print { nav { display: none; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  if (table.rows.length < 3) continue;
  [...table.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[column].textContent;
      const value = text => parseFloat(text.replaceAll(",", ""));
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)], [p, q] = [value(x), value(y)];
        if (x === "-" || y === "-") return (x === "-") - (y === "-");
        const order = isNaN(p) || isNaN(q) ? x.localeCompare(y) : p - q;
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
function show() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const closed = target && target.closest("details:not([open])");
  if (closed) closed.open = true;
}
addEventListener("hashchange", show);
show();
"""
