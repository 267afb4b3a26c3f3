"""How reports look: light or dark as the reader's system, readable on a phone and on paper."""

from __future__ import annotations

from functools import cache

from rlm_dspy.observe.report.html import highlight_style

_STYLE = """
:root { color-scheme: light dark;
  --page: #ffffff; --panel: #f5f6f8; --line: #dde1e6; --ink: #1b1f24; --soft: #5d6670; --link: #0b5cad;
  --act: #8fb4e8; --query: #7c5cc4; --cached: #c5b9e2; --child: #2a8f8f;
  --good: #1a7f4b; --warn: #9a6700; --bad: #c4323a; --good-soft: #e3f4ea; --warn-soft: #fbf0d6;
  --bad-soft: #fbe6e7;
  --read: #9db8d9; --shown: #2f6fde; --sent: #8a5cd1; --found: #d6246e; --add: #e2f5e7; --cut: #fde8e8; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171b; --panel: #1d2126; --line: #343a42; --ink: #e4e7ea; --soft: #9aa4af; --link: #79b4f2;
  --act: #4a6fa5; --query: #a287e6; --cached: #5b4f80; --child: #4fb8b8;
  --good: #56c288; --warn: #d9a83f; --bad: #f0787e; --good-soft: #17301f; --warn-soft: #352a10;
  --bad-soft: #3a1b1d;
  --read: #4d6786; --shown: #5b93f5; --sent: #a682ea; --found: #ff6aa5; --add: #16331f; --cut: #3d1d20; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 68rem; background: var(--page);
  color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .3rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .4rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 0; }
a { color: var(--link); text-decoration: none; } a:hover { text-decoration: underline; }
p { margin: .4rem 0; } small, .soft { color: var(--soft); } small { font-size: .85rem; }
pre, code { font: .82rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { margin: .3rem 0 .6rem; padding: .6rem .8rem; max-height: 26rem; overflow: auto; white-space: pre-wrap;
  background: var(--panel); border: 1px solid var(--line); border-radius: 6px; tab-size: 4; }
pre.code { border-left: 3px solid var(--act); } pre.failed { border-left: 3px solid var(--bad); }
pre.submitted { border-left: 3px solid var(--good);
  } pre.refused, pre.no_code { border-left: 3px solid var(--warn); }
summary { cursor: pointer; } summary::marker { color: var(--soft); }
.label { font-size: .75rem; letter-spacing: .04em; text-transform: uppercase; color: var(--soft);
  margin: .5rem 0 0; }
.badge { display: inline-block; padding: 0 .5em; border-radius: 1em; font-size: .8rem; line-height: 1.5;
  background: var(--panel); border: 1px solid var(--line); white-space: nowrap; }
.badge.good { background: var(--good-soft); color: var(--good); border-color: transparent; }
.badge.warn { background: var(--warn-soft); color: var(--warn); border-color: transparent; }
.badge.bad { background: var(--bad-soft); color: var(--bad); border-color: transparent; }
.answer { padding: .8rem 1rem; border: 1px solid var(--line); border-left: 4px solid var(--good);
  border-radius: 6px; }
.answer.warn { border-left-color: var(--warn); } .answer.bad { border-left-color: var(--bad); }
.answer .value { font-size: 1.15rem; white-space: pre-wrap; margin: 0 0 .5rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem;
  margin: 1rem 0; }
.tile { padding: .5rem .7rem; background: var(--panel); border-radius: 6px; }
.tile b { display: block; font-size: 1.2rem; line-height: 1.3; }
table { border-collapse: collapse; font-size: .9rem; } td, th { padding: .15rem .9rem .15rem 0;
  text-align: left;
  vertical-align: top; font-weight: normal; } th { color: var(--soft); } .n { text-align: right;
  white-space: nowrap; }
.wide { overflow-x: auto; }
svg { display: block; width: 100%; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px; }
.keys { display: flex; flex-wrap: wrap; gap: 0 1.2em; font-size: .9rem; } .axis .bars { background: none; }
.row { display: grid; grid-template-columns: 2rem 7rem minmax(0, 15rem) minmax(0, 1fr) 4.5rem; gap: .6rem;
  align-items: center; padding: .12rem 0; color: inherit; } a.row:hover { background: var(--panel);
  text-decoration: none; }
.row .what { overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  } .row .bars { background: var(--panel); }
.ticks { display: flex; justify-content: space-between; font-size: .75rem; color: var(--soft); }
.numbers span { flex: 1; text-align: center; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1.2rem;
  margin-top: .8rem; }
.plot .columns { height: 7rem; border-bottom: 1px solid var(--line); } .plot svg { height: 100%; }
.strips { display: grid; grid-template-columns: 4.5rem minmax(0, 1fr) 4.5rem; gap: 0 .6rem;
  align-items: center; }
.strips svg { grid-row: 1 / 4; grid-column: 2; height: 5.4rem; } .strips > span { height: 1.8rem;
  line-height: 1.8rem;
  font-size: .9rem; } .strips .ticks { grid-column: 2; }
.input { margin: 1.2rem 0 1.8rem; } mark { background: none; color: var(--found); font-weight: 600; }
.places li { margin: .3rem 0; }
.turn { margin: 1.2rem 0 2rem; padding-left: .9rem; border-left: 3px solid var(--line);
  scroll-margin-top: 1rem; }
.turn.bad { border-left-color: var(--bad); } .turn.good { border-left-color: var(--good); }
.turn.warn { border-left-color: var(--warn); } .turn:target { outline: 2px solid var(--link);
  outline-offset: .4rem; }
.turn > header { display: flex; flex-wrap: wrap; gap: .2rem .7rem; align-items: baseline; }
.reasoning { white-space: pre-wrap; margin: .3rem 0; }
.notice { font-size: .9rem; padding: .2rem .7rem; border-left: 3px solid var(--warn);
  background: var(--warn-soft); }
.calls, .call, .rest { margin: .25rem 0;
  } .calls > *:not(summary), .call > *:not(summary), .rest > *:not(summary) {
  margin-left: 1.1rem; } .calls > summary { padding: .2rem .5rem; background: var(--panel); border-radius: 6px;
  }
.call > summary { font-size: .9rem; } .call > summary > span { display: inline-block; max-width: 90%;
  vertical-align: top; }
.rest li { font-size: .82rem; } .rest ol, .places ol, .places ul { padding-left: 1.6rem; }
.act { fill: var(--act); background: var(--act); } .query { fill: var(--query); background: var(--query); }
.cached { fill: var(--cached); background: var(--cached); } .child { fill: var(--child);
  background: var(--child); }
.failed-bar { fill: var(--bad); background: var(--bad); } .read { fill: var(--read); background: var(--read); }
.shown { fill: var(--shown); background: var(--shown); } .sent { fill: var(--sent); background: var(--sent); }
.found { fill: var(--found); background: var(--found); } .track { fill: var(--panel); }
.two { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .6rem 1.2rem; }
.sides th, .sides td { max-width: 26rem; } .changed td { color: var(--warn); }
ins, del { text-decoration: none; display: inline-block; width: 100%; } ins { background: var(--add); }
del { background: var(--cut); }
@media (max-width: 44rem) { body { padding: 1rem .8rem 3rem; font-size: 15px; }
  .row { grid-template-columns: 1.6rem 6.2rem minmax(0, 1fr) 3.6rem; gap: .1rem .4rem; padding: .35rem 0; }
  .row .bars { grid-column: 1 / -1; grid-row: 2;
  } .strips { grid-template-columns: 4.2rem minmax(0, 1fr) 3.6rem; }
  .turn { padding-left: .6rem; } .two { grid-template-columns: minmax(0, 1fr); } }
@media print { pre { max-height: none; } body { max-width: none; } }
"""


@cache
def style() -> str:
    """Return the CSS of a report."""
    light = highlight_style(".code", "default")
    dark = highlight_style(".code", "github-dark")
    return f"{_STYLE}{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"
