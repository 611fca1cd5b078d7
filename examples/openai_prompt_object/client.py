"""What worked with OpenAI's hosted prompts works here; only the base URL is another."""

import os

from openai import OpenAI

client = OpenAI(api_key="sk-1234", base_url=os.environ.get("GATEWAY_URL", "http://127.0.0.1:4000/v1"))

response = client.responses.create(
    prompt={"id": "pmpt_welcome", "version": "2", "variables": {"name": "Ada", "language": "French"}},
)

print(response.output_text)
