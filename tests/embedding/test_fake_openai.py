import asyncio
import sys

import numpy as np
from openai import AsyncOpenAI

from tests.support.fake_openai import vector_of


def test_texts_that_share_words_are_near_each_other():
    question = vector_of("who mends the lock gates", 256)

    assert question @ vector_of("The keeper mends the lock gates.", 256) > 0.6
    assert abs(question @ vector_of("Bananas ripen quickly", 256)) < 0.3


async def test_it_runs_as_a_program_of_its_own():
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.fake_openai", "--dimensions", "32", stdout=asyncio.subprocess.PIPE
    )
    try:
        line = (await program.stdout.readline()).decode()
        async with AsyncOpenAI(api_key="sk-x", base_url=line.split()[-1], max_retries=0) as client:
            answer = await client.embeddings.create(input=["one", "two"], model="any")
    finally:
        program.terminate()
        await program.communicate()

    np.testing.assert_allclose(answer.data[1].embedding, vector_of("two", 32))
    assert answer.usage.prompt_tokens == 2
