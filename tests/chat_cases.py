"""Conversations that are rendered in every real chat template, and with which variables."""

from __future__ import annotations

from typing import Any

DAY = "2026-03-04"
BOS, EOS = "<s>", "</s>"
FAILS = "fails"

_USER = {"role": "user", "content": 'How do I <bake> "bread" & cake?'}
_THEN = {"role": "user", "content": "And then,\nwith what's left?"}
_ANSWER = {"role": "assistant", "content": "Mix flour & water."}
_SYSTEM = {"role": "system", "content": "You are terse."}

# name: (messages, variables of the template)
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "user": ([_USER], {}),
    "system": ([_SYSTEM, _USER], {}),
    "turns": ([_USER, _ANSWER, _THEN], {}),
    "system and turns": ([_SYSTEM, _USER, _ANSWER, _THEN], {}),
    "no thinking": ([_USER], {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}),
    "tools": (
        [_USER],
        {
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "oven",
                        "description": "Heats <b>the</b> oven & 'waits': für später",
                        "parameters": {
                            "type": "object",
                            "required": ["degrees"],
                            "properties": {
                                "degrees": {"type": "integer", "description": "Z first"},
                                "alarm": {"type": "string"},
                            },
                        },
                    },
                }
            ]
        },
    ),
}
