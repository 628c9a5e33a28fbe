"""Chat prompts for parity.py: varied languages, formats and lengths; one string is a user turn."""

from __future__ import annotations

_SINGLE = [
    "What is the capital of France?",
    "Explain photosynthesis to a ten-year-old.",
    "Write a haiku about the sea in winter.",
    "Write a Python function that returns the n-th Fibonacci number, with a docstring.",
    "List five healthy breakfast ideas, one per line, with a short reason for each.",
    "What is 17 * 23? Show your steps.",
    "Translate to Spanish: 'The library opens at nine, but the café is already open.'",
    "Summarise in one sentence: The Great Fire of London burned from 2 to 6 September 1666. It "
    "destroyed 13,200 houses and 87 churches, but few deaths were recorded.",
    "Give me a JSON object with the keys name, age and city for an invented person.",
    "Why is the sky blue, and why is it red at sunset?",
    "Tell me a short story about a robot that learns to paint.",
    "¿Cuáles son las ventajas de la energía solar?",
    "Écris une lettre de remerciement à un ami.",
    "Was ist der Unterschied zwischen Wetter und Klima?",
    "日本の首都はどこですか?",
    "Fix the bug: for i in range(10) print(i)",
    "Which is heavier, a kilogram of feathers or a kilogram of steel?",
    "Write an e-mail to my landlord: the heating has been broken since Monday.",
    "Classify the sentiment as positive, negative or neutral: 'It was fine, I guess. 🙂'",
    "Continue: Once upon a time, in a village between two rivers, there lived",
    "Make a Markdown table of three planets with their diameter in kilometres.",
    "SELECT name FROM users WHERE age > 30; What does this query do?",
]
CHATS: list[list[dict[str, str]]] = [
    *([{"role": "user", "content": text}] for text in _SINGLE),
    [
        {"role": "system", "content": "You are a pirate. Answer in one short paragraph."},
        {"role": "user", "content": "How do I cook rice?"},
    ],
    [
        {"role": "user", "content": "My name is Ada and I like chess."},
        {
            "role": "assistant",
            "content": "Nice to meet you, Ada! Do you play openings by the book?",
        },
        {
            "role": "user",
            "content": "Sometimes. What is my name, and which opening should I learn?",
        },
    ],
]
