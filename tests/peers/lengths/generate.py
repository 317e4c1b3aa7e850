"""Records how long real pairs are, in tokens of a model with a chat template: 64 pairs, one {"prompt", "chosen", "rejected"} a line,
drawn with seed 0 from those that the recipe `smollm2-135m-fpo` would not cut.

    pip install transformers==5.24.0 jinja2
    python generate.py alpaca-eval SMOLLM2 train.jsonl.gz > alpaca_eval.jsonl
    python generate.py hh-rlhf SMOLLM2 harmless-base-test.jsonl.gz > hh_rlhf.jsonl

SMOLLM2 is a folder with the tokenizer of HuggingFaceTB/SmolLM2-135M-Instruct. `alpaca-eval` reads rows of prompt, chosen and rejected,
rebuilt from the annotations in github.com/tatsu-lab/alpaca_eval, `hh-rlhf` the dialogues of github.com/anthropics/hh-rlhf
(harmless-base, test), whose prompt is all before the last assistant turn.

The prompt is the longest beginning that the rendered prompt and both joint tokenisations have in common, as in TRL and FPO; a response
ends with the end of its turn. Only the counts are written, no text.
"""

import argparse
import gzip
import itertools
import json
import random
import re

import transformers

PAIRS = 64
# data.max_length and data.max_prompt_length of the recipe.
MAX_LENGTH, MAX_PROMPT = 256, 128
TURNS = {"Human": "user", "Assistant": "assistant"}


def alpaca_eval(row):
    return [{"role": "user", "content": row["prompt"]}], row["chosen"], row["rejected"]


def hh_rlhf(row):
    """None where the dialogues differ before their last turn, or end in another than the assistant's."""
    chosen, rejected = ([(TURNS[speaker], text.strip()) for speaker, text in
                         re.findall(r"\n\n(Human|Assistant):(.*?)(?=\n\n(?:Human|Assistant):|\Z)", row[side], re.S)]
                        for side in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1] or {chosen[-1][0], rejected[-1][0]} != {"assistant"}:
        return None
    prompt = [{"role": role, "content": text} for role, text in chosen[:-1]]
    return prompt, chosen[-1][1], rejected[-1][1]


def lengths(tokenizer, prompt, chosen, rejected):
    """None where there is nothing to learn, or more than the recipe keeps."""
    ids = lambda messages, **more: tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **more)
    alone = ids(prompt, add_generation_prompt=True)
    rows = []
    for response in (chosen, rejected):
        row = ids([*prompt, {"role": "assistant", "content": response}])
        # The template goes on after the end of a turn.
        rows.append(row[:len(row) - row[::-1].index(tokenizer.eos_token_id)])
    beginning = lambda row: sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], zip(alone, row)))
    shared = min(map(beginning, rows))
    counts = [len(row) - shared for row in rows]
    if min(shared, *counts) < 1 or shared > MAX_PROMPT or shared + max(counts) > MAX_LENGTH:
        return None
    return {"prompt": shared, "chosen": counts[0], "rejected": counts[1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schema", choices=["alpaca-eval", "hh-rlhf"])
    parser.add_argument("tokenizer")
    parser.add_argument("data")
    a = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(a.tokenizer)
    read = {"alpaca-eval": alpaca_eval, "hh-rlhf": hh_rlhf}[a.schema]
    with gzip.open(a.data, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random.Random(0).shuffle(rows)
    pairs = (lengths(tokenizer, *pair) for pair in map(read, rows) if pair)
    for pair in itertools.islice((pair for pair in pairs if pair), PAIRS):
        print(json.dumps(pair))


if __name__ == "__main__":
    main()
