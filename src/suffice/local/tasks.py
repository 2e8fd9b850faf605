"""draft"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from suffice.local.questions import FAMILIES_OF_QUESTIONS, Item

Message = Mapping[str, str]
SHORT = "Answer with one word or one number."
THINK = "Think step by step, check the result, and then write only the final number."
STORY = (
    {"role": "user", "content": "Lena has 3 bags with 4 nuts each and eats 5 nuts. How many nuts are left?"},
    {"role": "assistant", "reasoning_content": "3 bags with 4 nuts each: 3 * 4 = 12 nuts.\nLena eats 5 nuts: 12 - 5 = 7 nuts.\nCheck: 7 nuts left and 5 nuts eaten are 7 + 5 = 12 nuts, and 12 / 4 = 3 bags. That is right.\nSo the answer is 7.\n", "content": "7"},
)
CHAIN = (
    {"role": "user", "content": "Calculate 14 + 8 - 5 + 20."},
    {"role": "assistant", "reasoning_content": "14 + 8 = 22.\n22 - 5 = 17.\n17 + 20 = 37.\nCheck: 37 - 20 = 17, 17 + 5 = 22, 22 - 8 = 14. That is right.\nSo the answer is 37.\n", "content": "37"},
)

def shot(ask: str, answer: str) -> tuple[Message, Message]:
    return ({"role": "user", "content": ask}, {"role": "assistant", "content": answer})

EX = {
 "capitals": shot("What is the capital of Iceland?", "Reykjavik"),
 "sentiment": shot("Is this review positive or negative? The tea was lovely.", "positive") + shot("Is this review positive or negative? The chair broke at once.", "negative"),
 "sums": shot("What is 2 + 1?", "3") + shot("What is 6 + 8?","14"),
 "letters": shot('What is the first letter of the word "house"?', "h") + shot('What is the last letter of the word "moon"?',"n"),
 "lists": shot("Which of these is a tool: cup, saw or cheese?", "saw") + shot("Which number is larger, 12 or 93?","93"),
 "stories": STORY, "chains": CHAIN,
}
