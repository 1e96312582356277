"""The style sheet of the report: one column, light and dark, no outside font or script."""

from __future__ import annotations

from typing import Final

POLICY: Final = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
    "img-src data:; form-action 'none'; base-uri 'none'\">"
)
"""What a browser is told about a page that shows names from files: run nothing, fetch nothing."""

CSS: Final = """
:root{color-scheme:light dark;--page:#f6f6f4;--card:#ffffff;--ink:#1c1c1a;--soft:#5d5c57;--faint:#8b8a84;--rule:#e4e3de;
--cloud:#9aa5b1;--front:#2268c9;--base:#c2620a;--chosen:#c3202f;--good:#13814f;--bad:#c3202f;--heat:#2268c9;--minus:#c2620a;
--warn:#fff5dd;--warn-rule:#e5b84b;--code:#f1f1ee}
@media (prefers-color-scheme:dark){:root{--page:#151514;--card:#1e1e1c;--ink:#eeede8;--soft:#b3b2ab;--faint:#85847d;
--rule:#363633;--cloud:#6c7884;--front:#5b9bf0;--base:#ee9a4a;--chosen:#f2686f;--good:#4cc38a;--bad:#f2686f;--heat:#4a8ff0;
--minus:#ee9a4a;--warn:#332a14;--warn-rule:#8a6a1d;--code:#272725}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:27px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:18px;margin:0 0 2px}h3{font-size:15px;margin:20px 0 4px}
p{margin:6px 0}.soft{color:var(--soft)}.small{font-size:13px}
section{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:18px 22px 20px;margin:18px 0}
.chip{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:0 10px;font-size:13px;
vertical-align:4px;font-weight:500;margin-left:8px}
.verdict{font-size:17px;margin:14px 0 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(135px,1fr));gap:10px;margin-top:18px}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:10px 14px}
.tile b{display:block;font-size:21px;font-weight:600;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
.note{background:var(--warn);border:1px solid var(--warn-rule);border-radius:10px;padding:9px 16px;margin:12px 0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:14px}
@media (max-width:620px){.pair{grid-template-columns:1fr}section{padding:14px}}
figure{margin:12px 0 0;overflow-x:auto}figcaption{color:var(--soft);font-size:13px}
svg{display:block;width:100%;height:auto}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;margin-top:10px;font-size:14px;font-variant-numeric:tabular-nums}
th{font-weight:600;text-align:right;color:var(--soft);font-size:13px;vertical-align:bottom}
td{text-align:right;white-space:nowrap}
th,td{padding:5px 10px;border-bottom:1px solid var(--rule)}
th.l,td.l{text-align:left}td.l{white-space:normal;overflow-wrap:anywhere;min-width:110px}
tr.chosen td{font-weight:600}tr.chosen td:first-child{box-shadow:inset 3px 0 var(--chosen)}
.pm{color:var(--faint);font-size:12.5px;font-weight:400}.below{display:block;line-height:1.15}
.narrow{max-width:640px}td.long{white-space:normal;overflow-wrap:anywhere}
.front-grid{display:grid;grid-template-columns:6fr 4.1fr;gap:14px;align-items:start}
@media (max-width:800px){.front-grid{grid-template-columns:1fr}}
.good-text{color:var(--good);font-weight:600}.bad-text{color:var(--bad);font-weight:600}
pre{background:var(--code);border-radius:8px;padding:11px 14px;overflow:auto;font:13px/1.5 ui-monospace,Menlo,Consolas,
monospace;max-height:460px;margin:8px 0}
code{font:13px ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
details{margin-top:10px}summary{cursor:pointer;color:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;margin:10px 0 0;color:var(--soft);font-size:13px}
.legend svg{width:16px;height:16px;display:inline-block;vertical-align:-3px;margin-right:5px}
footer{color:var(--faint);font-size:13px;margin-top:24px}
text{font-family:inherit;fill:var(--ink)}
.label{font-size:11.5px}.strong{font-weight:700}.tick{font-size:11px;fill:var(--soft)}.axis-label{font-size:12.5px;fill:var(--soft)}
.halo{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
.number{font-variant-numeric:tabular-nums;fill:var(--soft)}
.cell{font-size:10.5px}.inverse{fill:var(--card)}
.grid{stroke:var(--rule);stroke-width:1}.axis{stroke:var(--faint);stroke-width:1}
.zero{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:3 3}
.candidate{fill:var(--cloud);fill-opacity:.55}
.infeasible{fill:none;stroke:var(--cloud);stroke-width:1.1;stroke-opacity:.8}
.front{fill:var(--front)}.baseline{fill:var(--base)}.chosen{fill:var(--chosen)}
polygon,circle.front,circle.chosen{stroke:var(--card);stroke-width:1}
.front-line{fill:none;stroke:var(--front);stroke-width:1.8}.best-line{fill:none;stroke:var(--front);stroke-width:2.2}
.baseline-line{stroke:var(--base);stroke-width:1.2;stroke-dasharray:5 4}
.failure{fill:none;stroke:var(--bad);stroke-width:1.5}
.whisker{stroke-width:1.6}.pair .whisker.baseline,.front-grid .whisker.baseline{stroke-opacity:.6}
.whisker.candidate{stroke:var(--cloud)}.whisker.front{stroke:var(--front)}.whisker.baseline{stroke:var(--base)}.whisker.chosen{stroke:var(--chosen)}
.whisker.good{stroke:var(--good)}.whisker.bad{stroke:var(--bad)}.whisker.neutral{stroke:var(--faint)}
.good{fill:var(--good)}.bad{fill:var(--bad)}.neutral{fill:var(--faint)}
.set-search{fill:var(--cloud)}.whisker.set-search{stroke:var(--cloud)}
.set-select{fill:var(--front)}.whisker.set-select{stroke:var(--front)}
.set-report{fill:var(--ink)}.whisker.set-report{stroke:var(--ink)}
.leader{stroke:var(--faint);stroke-width:.8;stroke-opacity:.8}
.thread{fill:none;stroke-width:1;stroke-opacity:.35}.thread.candidate,.thread.infeasible{stroke:var(--cloud)}
.thread.infeasible{stroke-dasharray:2 3}.thread.front{stroke:var(--front);stroke-opacity:.8}
.thread.baseline{stroke:var(--base);stroke-opacity:.9;stroke-width:1.4}.thread.chosen{stroke:var(--chosen);stroke-opacity:1;stroke-width:2.4}
.stem{stroke-width:1;stroke-opacity:.4}.stem.candidate{stroke:var(--cloud)}.stem.front{stroke:var(--front)}
.stem.baseline{stroke:var(--base)}.stem.chosen{stroke:var(--chosen);stroke-opacity:1}
.joined{fill:none;stroke-width:1.4;stroke-opacity:.8}.joined.set-search{stroke:var(--cloud)}.joined.set-select{stroke:var(--front)}
.joined.set-gap{stroke:var(--faint)}
text.neutral{fill:var(--soft)}
.heat{fill:var(--heat)}.heat-minus{fill:var(--minus)}.heat-none{fill:none;stroke:var(--rule)}
.hop{fill:var(--front)}.hop-again{fill:var(--base)}
.hop-line{stroke:var(--faint);stroke-width:1.2}.hop-jump{stroke:var(--chosen);stroke-width:1.8}
.gain-one{stroke:var(--ink);stroke-width:1;stroke-dasharray:2 2;stroke-opacity:.6}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:14px}
@media print{body{background:#fff}section,.tile{break-inside:avoid}pre{max-height:none}}
"""
