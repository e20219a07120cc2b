"""Print README.md, made from nbs/index.ipynb: `make readme` writes it, a test compares them."""
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def readme() -> str:
    "Markdown cells as they are, visible code in fences, text and table outputs below it"
    parts = []
    for cell in json.loads((ROOT/'nbs'/'index.ipynb').read_text())['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': parts.append(source.replace('](../', ']('))
        elif '#| hide\n' not in source:
            if '#| hide_input' not in source: parts.append(f'```python\n{source}\n```')
            for out in cell['outputs']:
                data = out.get('data', {})
                if 'text/markdown' in data: parts.append(''.join(data['text/markdown']))
                elif 'text/plain' in data: parts.append('```\n' + ''.join(data['text/plain']) + '\n```')
    return '\n\n'.join(parts) + '\n'


if __name__ == '__main__': print(readme(), end='')
