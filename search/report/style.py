"""The page's CSS. Text contrasts by 4.5 and more with what lies under it, light and dark."""

STYLE = """
:root {
  --paper: #ffffff; --card: #f4f6f8; --ink: #1b2128; --muted: #56606d; --line: #d5dbe2;
  --link: #1f5fae; --good: #1d6b3f; --good-card: #e9f6ee; --care: #8a4b00; --care-card: #fff4e5;
  color-scheme: light;
}
@media screen and (prefers-color-scheme: dark) {
  :root:not(.light) {
    --paper: #14181d; --card: #1d232b; --ink: #e6e9ee; --muted: #a3adba; --line: #353d48;
    --link: #8ab8f5; --good: #8fdcb0; --good-card: #15291e; --care: #ffce8a; --care-card: #2e2413;
    color-scheme: dark;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 4rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; border-radius: 2px; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--paper); padding: .5rem; z-index: 3; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
header, main { max-width: 72rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; }
h2 { font-size: 1.35rem; line-height: 1.25; margin: 0 0 .6rem; }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .4rem; }
header p, .note, figcaption, caption { color: var(--muted); }
header p { margin: 0; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.note, figcaption, caption { font-size: .87rem; }
nav { position: sticky; top: 0; z-index: 2; background: var(--paper);
  border-bottom: 1px solid var(--line); margin-top: .8rem; }
nav ul { display: flex; gap: .1rem; overflow-x: auto; list-style: none; margin: 0 auto;
  padding: 0 .6rem; max-width: 72rem; scrollbar-width: none; }
nav a { display: block; padding: .7rem .5rem; white-space: nowrap; text-decoration: none;
  color: var(--muted); font-size: .9rem; border-bottom: 2px solid transparent; }
nav a:hover { color: var(--ink); }
nav a[aria-current] { color: var(--link); border-color: var(--link); }
section { padding: 1.8rem 0 .6rem; border-bottom: 1px solid var(--line); }
section:last-child { border: 0; }
.hero { background: var(--card); border-radius: .6rem; padding: 1rem 1.2rem; margin: 0 0 1rem;
  max-width: none; }
.hero p { margin: 0; }
.hero .what { font-weight: 600; }
.hero .value { font-size: 2.6rem; font-weight: 700; line-height: 1.15;
  font-variant-numeric: tabular-nums; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .5rem;
  margin: .8rem 0; }
dl > div { background: var(--card); border-radius: .4rem; padding: .45rem .7rem; min-width: 0; }
dt { color: var(--muted); font-size: .82rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
dl.commands { grid-template-columns: 1fr; }
pre { margin: .2rem 0 0; overflow-x: auto; }
code { font: .87rem/1.5 ui-monospace, "Cascadia Mono", "DejaVu Sans Mono", monospace; }
pre code { user-select: all; }
li code { background: var(--card); padding: .1rem .3rem; border-radius: .25rem; }
ul { padding-left: 1.2rem; margin: .4rem 0; }
li { margin: .3rem 0; max-width: 46rem; }
.remarks { list-style: none; padding: 0; }
.remarks li { display: flex; gap: .6rem; align-items: baseline; }
.remarks li > span:first-child { flex: none; width: 1.5rem; height: 1.5rem; border-radius: 50%;
  text-align: center; font-weight: 700; line-height: 1.5rem; }
.good { color: var(--good); background: var(--good-card); }
.care { color: var(--care); background: var(--care-card); }
.scroll { overflow-x: auto; margin: .6rem 0; border: 1px solid var(--line); border-radius: .4rem;
  max-height: 36rem; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
caption { text-align: left; padding: .5rem .6rem; position: sticky; left: 0; }
th, td { padding: .3rem .6rem; text-align: left; vertical-align: top; }
td { border-top: 1px solid var(--line); max-width: 26rem; }
td.wide { min-width: 16rem; }
.right { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead th { position: sticky; top: 0; background: var(--card); white-space: nowrap; padding: 0;
  z-index: 1; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: .4rem .6rem; cursor: pointer; width: 100%; text-align: inherit; }
th button::after { content: "\\2195"; opacity: .45; margin-left: .3rem; font-size: .8em; }
th[aria-sort=ascending] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: "\\2193"; opacity: 1; }
tr.baseline td { color: var(--link); }
tr.pruned td, tr.stopped td { color: var(--muted); }
tr.failed td, tr.diverged td, tr.too-big td { color: var(--care); }
input[type=search] { font: inherit; color: inherit; background: var(--paper); padding: .3rem .5rem;
  border: 1px solid var(--muted); border-radius: .3rem; width: 14rem; max-width: 100%; }
figure { margin: 0; }
.chart { margin: .6rem 0; min-width: 0; }
.across { overflow-x: auto; }
.plot { width: 100%; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr));
  gap: .4rem 1.6rem; }
.grid > * { min-width: 0; }
.switches { border: 1px solid var(--line); border-radius: .4rem; padding: .3rem .8rem .6rem;
  display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .6rem 0; min-width: 0; }
.switches label { display: inline-flex; gap: .4rem; align-items: center; font-size: .9rem;
  padding: .2rem 0; }
.swatch { width: 1.1rem; height: .25rem; border-radius: .2rem; }
.swatch.faint { opacity: .5; }
legend { color: var(--muted); font-size: .85rem; padding: 0 .3rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .8rem; }
.gallery.rows { grid-template-columns: repeat(var(--columns), minmax(0, 8rem)); gap: .4rem; }
.card { min-width: 0; }
.card figcaption span { display: block; line-height: 1.35; }
.pair { display: flex; gap: .2rem; }
.pair img { width: 100%; max-width: 8rem; min-width: 0; flex: 1 1 0; }
.card:has(img + img) { grid-column: span 2; }
img { height: auto; border-radius: .25rem; display: block; image-rendering: auto; }
img.sheet { max-width: 100%; background: #fff; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--link); padding: .3rem 0; }
footer { color: var(--muted); font-size: .85rem; padding: 1rem; text-align: center; }
@media (max-width: 40rem) {
  body { font-size: 15px; }
  h1 { font-size: 1.4rem; }
  .hero .value { font-size: 2.1rem; }
  dl { grid-template-columns: repeat(auto-fill, minmax(7.5rem, 1fr)); }
  .gallery { grid-template-columns: repeat(auto-fill, minmax(6.2rem, 1fr)); }
}
@media print {
  nav, .screen, .switches, .skip { display: none; }
  header, main { max-width: none; padding: 0; }
  .scroll { max-height: none; overflow: visible; border: 0; }
  table { font-size: .7rem; }
  section { break-before: auto; }
  figure, .hero, tr, .card { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
