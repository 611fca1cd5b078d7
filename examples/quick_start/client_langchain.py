"""Asks the gateway with LangChain; without messages of its own, the prompt's are all that is sent."""

import os

from langchain_openai import ChatOpenAI

chat = ChatOpenAI(
    model="gpt-4",
    openai_api_key="sk-1234",
    openai_api_base=os.environ.get("GATEWAY_URL", "http://127.0.0.1:4000"),
    extra_body={"prompt_id": "1234"},
)

response = chat.invoke([])

print(response.text)
