"""Ask a tunesmith server with nothing but the openai package: python ask.py [BASE_URL]."""

import sys

from openai import OpenAI

client = OpenAI(
    base_url=sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1", api_key="none"
)
names = [model.id for model in client.models.list()]
tuned = [name for name in names if name.startswith("ft:")]
print("models:", ", ".join(names))
stream = client.chat.completions.create(
    model=(tuned or names)[0],
    messages=[
        {
            "role": "system",
            "content": "You are the desk of Kestrel Parcels. Read the e-mail and answer with JSON: "
            "intent, priority, order, language, reply.",
        },
        {"role": "user", "content": "Wo bleibt mein Paket KP-70412? Es sollte am Montag da sein."},
    ],
    temperature=0,
    max_tokens=120,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
