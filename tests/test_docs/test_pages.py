"""README and docs/ are short, and what they name exists."""
import ast
import importlib
import re
from functools import reduce
from pathlib import Path

import pytest
import yaml
from pages import (
    LINK,
    PAGES,
    REPOSITORY,
    anchors_of,
    name_of,
    prose_of,
    spans,
    tables_of,
    text_of,
)

from sct_mm import SCTLossHook
from sct_mm.engine.sct.recipe import at_scales
from sct_mm.engine.sct.schedule import Schedule, make_schedule

README = PAGES[0]
MOST_LINES, MOST_OF_A_PARAGRAPH = 150, 5
MOST_OF_THE_MAP = 40
WITHIN = ('configs/', 'docs/', 'sct_mm/', 'tests/', 'tools/')


def paragraphs_of(text):
    """Lines of prose in a row: no head, table, list or image."""
    for part in re.split(r'\n\s*\n', text):
        lines = part.strip('\n').split('\n')
        if not re.match(r'[#|!<]|- |    ', part.strip('\n')):
            yield lines


def test_readme_is_short():
    assert len(text_of(README).splitlines()) <= MOST_LINES
    for lines in paragraphs_of(prose_of(README)):
        assert len(lines) <= MOST_OF_A_PARAGRAPH, lines


def test_the_map_of_the_code_is_one_screen():
    assert len(text_of(REPOSITORY / 'docs/code.md').splitlines()
               ) <= MOST_OF_THE_MAP


def test_the_first_screen_says_when_not_to_use_it():
    first = text_of(README).partition('\n## ')[0]
    assert '**Do not use it**' in first and 'no run was made' in first
    assert 'shared BN' in first and 'no weights are published' in first
    assert first.count('![') == 2
    table, = tables_of(first)
    assert len(table) <= 5 and len(table[0]) <= 7  # 4 networks, 5 sizes


@pytest.mark.parametrize('path', PAGES, ids=name_of)
def test_every_link_resolves(path):
    for link in LINK.findall(prose_of(path)):
        if re.match('https?:', link):
            continue
        file, _, anchor = link.partition('#')
        target = (path.parent / file).resolve() if file else path
        assert target.is_file(), link
        assert target.is_relative_to(REPOSITORY), link
        if anchor:
            assert anchor in anchors_of(target), link


def test_the_site_has_every_page():
    with open(REPOSITORY / 'mkdocs.yml') as file:
        site = yaml.safe_load(file)

    def leaves(part):
        if isinstance(part, str):
            return [part]
        values = part.values() if isinstance(part, dict) else part
        return [leaf for value in values for leaf in leaves(value)]

    assert sorted(leaves(site['nav'])) == [p.name for p in PAGES[1:]]
    for entry in (README, REPOSITORY / 'docs/index.md'):
        linked = {Path(link).name for link in LINK.findall(text_of(entry))}
        missing = {p.name for p in PAGES[1:]} - linked - {'index.md'}
        assert not missing - {'how-it-works.md'}, (entry, missing)


def test_every_path_is_there():
    named = [(page, code) for page, code in spans()
             if code.startswith(WITHIN) and ' ' not in code]
    assert len(named) > 30
    for page, code in named:
        assert list(REPOSITORY.glob(code.rstrip('/'))), (page, code)


def test_every_name_of_the_package_is_there():
    named = [(page, code) for page, code in spans()
             if re.fullmatch(r'sct_mm(\.\w+)+(\(.*\))?', code)
             and not code.endswith('.json')]
    assert len(named) > 2
    for page, code in named:
        parts = code.partition('(')[0].split('.')
        module, rest = parts[0], parts[1:]
        while rest and importlib.util.find_spec(f'{module}.{rest[0]}'):
            module, rest = f'{module}.{rest[0]}', rest[1:]
        assert reduce(getattr, rest, importlib.import_module(module)), (
            page, code)


def documented_costs():
    """[(arguments, FLOPs)] of the table of what a step costs."""
    table, = [table for table in tables_of(text_of(
        REPOSITORY / 'docs/train.md')) if 'SCTLossHook' in table[0][0]]
    return [(eval(f'dict({row[0].strip("`")})') if row[0][0] == '`' else {},
             float(row[2].split()[0])) for row in table[1:]]


@pytest.mark.parametrize('options, documented', documented_costs())
def test_a_step_costs_what_is_documented(options, documented):
    scales, images, steps = (224, 192, 160, 128), 256, 4000
    hook, cost = SCTLossHook(**options), 0.0
    fitted = at_scales(hook.recipe, scales, False, between=hook.between)
    schedule = Schedule(
        dict(zip(scales, fitted['loss_weights'] or (1 / 4, ) * 4,
                 strict=True)),
        hook.scales_per_step or 4, hook.seed, hook.partition,
        fitted['between'], fitted['size_divisor'],
        base_trains=not hook.adapt, progressive=hook.progressive, steps=steps)
    for step in range(steps):
        for each in schedule.passes(images, step):
            part = each.share or slice(0, images)
            cost += ((part.stop - part.start) / images / steps
                     * (each.size / scales[0])**2)
    if hook.adapt:  # the base runs forward, other weights have no gradients
        cost = (1 + 2 * cost) / 3
    assert documented == pytest.approx(cost, abs=0.01)


def documented_epochs():
    """The rows of the table of what 100 epochs become."""
    table, = [table for table in tables_of(text_of(
        REPOSITORY / 'docs/train.md')) if 'become' in table[0][-1]]
    return table[1:]


@pytest.mark.parametrize('scales, cost, epochs', documented_epochs())
def test_the_epochs_are_those_of_the_log(scales, cost, epochs):
    sizes = tuple(map(int, re.findall(r'\d+', scales)))
    options = at_scales('any-size', sizes, 'detector' in scales)
    found = make_schedule(
        sizes, options['loss_weights'], scales_per_step=1, steps=1,
        between=options['between'], divisor=options['size_divisor'],
        progressive=SCTLossHook(recipe='any-size').progressive
    ).relative_cost()
    assert (f'{found:.3f}', f'{100 / found:.0f}') == (cost, epochs)


def text_in(node):
    """The text in code, values as `…`, those joined by + as one."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return ''.join(map(text_in, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_in(node.left) + text_in(node.right)
    return '…'


def test_every_sentence_of_troubleshoot_stands_in_the_code():
    said = []
    for path in (*REPOSITORY.glob('sct_mm/**/*.py'),
                 *REPOSITORY.glob('tools/**/*.py')):
        said += [re.sub('…+', '…', text_in(node).strip())
                 for node in ast.walk(ast.parse(path.read_text()))
                 if isinstance(node, (ast.JoinedStr, ast.Constant,
                                      ast.BinOp))]
    rows = [row for table in tables_of(text_of(
        REPOSITORY / 'docs/troubleshoot.md')) for row in table[1:]]
    assert len(rows) > 50
    for sentence, fix in rows:
        assert fix and any(sentence in each for each in said), sentence
