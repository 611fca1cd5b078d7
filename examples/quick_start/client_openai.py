"""Asks the gateway with OpenAI's client; `prompt_id` goes into `extra_body`, for the client has no such argument."""

import os

from openai import OpenAI

client = OpenAI(api_key="sk-1234", base_url=os.environ.get("GATEWAY_URL", "http://127.0.0.1:4000"))

response = client.chat.completions.create(
    model="gpt-4",
    messages=[{"role": "user", "content": "hi"}],
    extra_body={"prompt_id": "1234"},
)

print(response.choices[0].message.content)
