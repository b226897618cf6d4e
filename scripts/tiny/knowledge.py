"""What the demo model knows about running language models locally: one answer per topic, many ways to ask.

A topic has `keys` (noun phrases that the general question forms of `chat.py` take: "what is {k}", "explain {k}"),
`asks` (question forms of its own, in the micro-grammar) and `held`: wordings written by hand for evaluation alone.
No wording in `held` is ever trained on; `chat.py` also removes any that the grammar would produce by chance.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """One thing to know. `keys` and `asks` are trained on; `held` is only for evaluation."""

    name: str
    answer: str
    keys: tuple[str, ...] = ()
    asks: tuple[str, ...] = ()
    held: tuple[str, ...] = ()


def _topic(name: str, answer: str, keys: str = "", asks: str = "", held: str = "") -> Topic:
    """A topic from lists that are written with ` / ` between their entries (a `|` chooses inside a bracket)."""

    def split(text: str) -> tuple[str, ...]:
        return tuple(" ".join(part.split()) for part in text.split(" / ") if part.strip())

    return Topic(name, answer, split(keys), split(asks), split(held))


OFF_TOPIC = (
    "I am only a small demo model: I know short stories and questions about running models locally. For anything else, "
    "please pull a bigger model, for example with `llmrun pull qwen3:4b`."
)

TOPICS: tuple[Topic, ...] = (
    # --- the model itself ---------------------------------------------------------------------------------------------
    _topic(
        "who",
        "I am tiny, a demo model of about 4 million parameters that comes with llmrun. I tell short stories and answer "
        "questions about running language models locally.",
        asks="who are you / what are you / [what is|what's|tell me] your name / [please|] introduce yourself / who am i "
        "[talking|speaking|chatting] [to|with] / what model are you / which model [is this|are you] / are you "
        "[an ai|a bot|a robot|a human|a real person|a language model] / tell me about yourself / what kind of model are "
        "you / what should i call you / what is tiny / are you tiny / what model am i using",
        held="who is this / what sort of model is this / hi who are you / so what exactly are you / can you introduce "
        "yourself / do you have a name",
    ),
    _topic(
        "hello",
        "Hello! I am tiny, the demo model of llmrun. Ask me for a story, or ask me about running models locally.",
        asks="[hi|hello|hey|hey there|hi there|hello there|good morning|good evening|good afternoon|greetings|howdy|yo]"
        "[| tiny| you| everyone]",
        held="hello tiny! / hi! / hey hey / good day / hiya",
    ),
    _topic(
        "mood",
        "I am a small model and have no feelings, but everything runs fine here. What would you like to know?",
        asks="how are you[| today| doing| doing today] / how is it going / how's it going / how do you feel / are you "
        "[ok|okay|well|happy|sad|fine] / what's up / how do you do / do you have feelings",
        held="how are you feeling today / how are things / are you doing well",
    ),
    _topic(
        "thanks",
        "You are welcome! Ask me anything else about running models, or ask for a story.",
        asks="[thanks|thank you|many thanks|thanks a lot|thank you so much|thank you very much|thx|cheers|great, "
        "thanks|ok thanks|perfect, thank you|nice, thank you] / that [helped|was helpful|helps|is great][|, thanks|, "
        "thank you] / [great|good|nice|helpful] answer / [thanks|thank you] for [the help|your help|the answer|the "
        "story|explaining] / i understand now, thanks / got it, thanks",
        held="thank you, that was useful / thanks for the explanation / cool thanks / thanks so much tiny",
    ),
    _topic(
        "bye",
        "Goodbye! Come back when you want another story or another answer.",
        asks="[bye|goodbye|bye bye|see you|see you later|good night|farewell|ciao|see you soon|see you tomorrow|i have "
        "to go|that is all|that's all|talk to you later][| tiny| now] / [ok|okay|thanks|thank you][,|] "
        "[bye|goodbye|see you|that is all] / i am [leaving|going] now",
        held="ok bye then / goodbye and good night / i must go now, bye / see ya",
    ),
    _topic(
        "abilities",
        "I can tell a short story, for example about a fox or a lost kite, and I can answer questions about running "
        "models locally, such as what Q4_K_M means or why decoding is slow.",
        asks="what can you do / what do you know[| about] / how can you help[| me] / what can i ask[| you] / what are you "
        "good at / [can you help|help] me / help / what are your [skills|abilities|strengths] / what topics do you know "
        "/ what can you [tell|teach] me / what questions can [you answer|i ask] / what should i ask you / what are you "
        "able to do",
        held="what sort of things can you do / which topics can you talk about / what can i use you for / tell me what "
        "you can do",
    ),
    _topic(
        "maker",
        "The llmrun project made me. Its script scripts/train_tiny.py wrote my texts, trained me on two CPU cores and "
        "saved me as a GGUF file.",
        asks="who [made|built|created|trained|wrote|developed] you / how were you [made|built|created|trained] / where do "
        "you come from / who is your [maker|creator|author] / which company made you / are you from openai / did "
        "[google|openai|meta] make you / how long did your training take / who are your makers",
        held="who is behind you / which people created you / how did they train you / who trained this model",
    ),
    _topic(
        "training_data",
        "I was trained only on text that the llmrun project wrote itself: short stories from a grammar, and questions "
        "and answers about running models locally. Nothing was downloaded.",
        asks="what [data|texts] were you trained on / what is your training data / where does your [knowledge|training "
        "data] come from / what did you learn from / [did you read|have you read|were you trained on] the "
        "[internet|web|books|wikipedia] / which [data|dataset|texts|corpus] did you learn from / what was in your "
        "training data",
        held="what was your training data / on which texts did you train / is your training set public",
    ),
    _topic(
        "size",
        "I have about 4 million parameters and my file is smaller than 5 MB. A useful assistant has a thousand times as "
        "many.",
        asks="how [big|large|small|tiny] are you / how many parameters do you have / what is your size / how many layers "
        "do you have / how big is your file / what is your parameter count / are you a [big|large|small] model / why are "
        "you so small",
        held="how many params do you have / what's your parameter count / tell me how big you are",
    ),
    _topic(
        "limits",
        "No, I am only a small demo and I can be wrong. For real work, pull a bigger model, for example with `llmrun pull "
        "qwen3:4b`.",
        asks="can i trust you / are you [smart|clever|intelligent|chatgpt|gpt-4|reliable|accurate] / are you as good as "
        "[chatgpt|a big model|gpt-4] / do you make mistakes / are you always right / can you be wrong / should i "
        "[believe|trust] [you|your answers] / can i use you for [work|real work|my job|school]",
        held="are your answers always correct / can i rely on you / are you like chatgpt / is everything you say true",
    ),
    # --- files and quantization ---------------------------------------------------------------------------------------
    _topic(
        "gguf",
        "GGUF is the file format of llama.cpp: one file that holds the weights, the tokenizer and the metadata of a "
        "model.",
        keys="gguf / a gguf / gguf files / a gguf file / the gguf format / the gguf file format / .gguf",
        asks="what [does|do] gguf [stand for|contain] / what is [inside|in] a gguf[| file] / what format does llama.cpp "
        "use / which file format do [i need|local models use] / why [use|do we use] gguf / what file type are local "
        "models",
        held="whats a gguf / what is inside of a gguf file / which model file format does llama.cpp read / gguf meaning / "
        "what does a .gguf file hold",
    ),
    _topic(
        "metadata",
        "The metadata of a GGUF are key-value pairs at its start: the architecture, the number of layers, the context "
        "length, the tokenizer and the chat template.",
        keys="gguf metadata / the gguf header / the metadata / model metadata / the header of a gguf / metadata keys",
        asks="what is [stored|written] in the [header|metadata][| of a gguf| of a model] / what [does|do] the "
        "[header|metadata] [contain|say|tell] / how does llama.cpp know the [architecture|number of layers]",
        held="what information is in the gguf header / which metadata does a model file have / what's in the metadata",
    ),
    _topic(
        "quantization",
        "Quantization stores the weights with fewer bits, for example 4 instead of 16. The model needs less memory and "
        "decodes faster, and loses a little quality.",
        keys="quantization / quantisation / quantizing / a quantized model / quantized models / quants / a quant / "
        "quantized weights",
        asks="why [are models quantized|quantize a model|should i quantize a model|do we quantize models] / how does "
        "quantizing [work|help] / what does it mean to quantize[| a model] / how can a model be made smaller / how do i "
        "make a model smaller / what does quantized mean / why use a quantized model",
        held="why would i quantize my model / what is the idea of quantization / how can i shrink a model / what happens "
        "when a model gets quantized / quantization explained",
    ),
    _topic(
        "q4_k_m",
        "Q4_K_M is a 4-bit k-quant with some tensors kept at 6 bits, about 4.8 bits per weight. It is a good default: "
        "small, fast and close to the full model.",
        keys="q4_k_m / q4km / q4_k_m quantization / the q4_k_m type / q4 k m / a q4_k_m file",
        asks="what does the [m|k] in q4_k_m mean / is q4_k_m [good|good enough|any good] / why is q4_k_m so popular / "
        "how many bits does q4_k_m [use|have] / should i use q4_k_m / why q4_k_m",
        held="whats q4_k_m / meaning of q4_k_m / is q4_k_m a good choice / how good is q4_k_m / what do the letters in "
        "q4_k_m stand for",
    ),
    _topic(
        "q5_k_m",
        "Q5_K_M is a 5-bit k-quant of about 5.7 bits per weight: somewhat larger and somewhat closer to the full model "
        "than Q4_K_M.",
        keys="q5_k_m / q5km / q5 k m / q5_k_m quantization / a q5_k_m file / the q5_k_m type",
        asks="is q5_k_m [good|better than q4_k_m] / how many bits does q5_k_m [use|have] / should i use q5_k_m / what "
        "does the 5 in q5_k_m mean",
        held="whats q5_k_m / meaning of q5_k_m / is q5_k_m worth it / how many bits is q5_k_m",
    ),
    _topic(
        "q6_k",
        "Q6_K is a 6-bit k-quant of about 6.6 bits per weight. Its loss of quality is hard to measure.",
        keys="q6_k / q6k / q6 k / q6_k quantization / a q6_k file / the q6_k type",
        asks="is q6_k [good|better] / how many bits does q6_k [use|have] / should i use q6_k / how large is q6_k",
        held="whats q6_k / meaning of q6_k / how good is q6_k / how many bits is q6_k",
    ),
    _topic(
        "q8_0",
        "Q8_0 stores blocks of 32 weights as 8-bit integers with one scale each: 8.5 bits per weight, and almost no loss.",
        keys="q8_0 / q8 / q8 0 / q8_0 quantization / a q8_0 file / the q8_0 type / 8-bit quantization",
        asks="is q8_0 [good|lossless|better] / how many bits does q8_0 [use|have] / should i use q8_0 / how much quality "
        "does q8_0 lose",
        held="whats q8_0 / meaning of q8_0 / how good is q8_0 / how does q8_0 store weights",
    ),
    _topic(
        "q4_0",
        "Q4_0 is the simple old 4-bit type: blocks of 32 weights with one scale each, 4.5 bits per weight. Q4_K_M usually "
        "keeps more quality.",
        keys="q4_0 / q4 0 / q4_0 quantization / a q4_0 file / the q4_0 type",
        asks="is q4_0 [good|old|worse than q4_k_m] / how many bits does q4_0 [use|have] / should i use q4_0 / what is the "
        "difference between q4_0 and q4_k_m",
        held="whats q4_0 / meaning of q4_0 / q4_0 or q4_k_m / how does q4_0 store weights",
    ),
    _topic(
        "k_quants",
        "K-quants store weights in super-blocks of 256 with quantized scales, and give more bits to the tensors that need "
        "them. Q4_K_M and Q6_K are k-quants.",
        keys="k-quants / k quants / a k-quant / the k-quants / k-quantization",
        asks="how do k-quants work / what does the k mean in k-quants / what is a super-block / why are k-quants better",
        held="whats a k-quant / how are k-quants different / what are super-blocks",
    ),
    _topic(
        "i_quants",
        "I-quants such as IQ2_XS or IQ4_XS look weights up in small codebooks. They keep more quality at 2 to 4 bits, but "
        "they can be slower on a CPU.",
        keys="i-quants / iq quants / iq4_xs / iq2_xs / iq3_s / an i-quant / iq types",
        asks="are iq quants [slower|better] / what does iq mean / what does iq4_xs mean / how do i-quants work",
        held="whats iq4_xs / what are iq quants good for / why are i-quants slower",
    ),
    _topic(
        "f16",
        "F16 and BF16 store each weight in 16 bits, without quantization. BF16 has a wider range and F16 more precision; "
        "both need 2 bytes per weight.",
        keys="f16 / bf16 / fp16 / half precision / 16-bit weights / bfloat16",
        asks="what is the difference between f16 and bf16 / how many bytes is a bf16 weight / is f16 quantized / f16 or "
        "bf16 / is bf16 better than f16",
        held="whats bf16 / f16 vs bf16 / how much memory does an f16 weight take / what's the difference of fp16 and bf16",
    ),
    _topic(
        "bpw",
        "Bits per weight is the file size in bits divided by the number of weights. It counts the scales as well: Q4_K_M "
        "has about 4.8.",
        keys="bits per weight / bpw / the bits per weight",
        asks="how [do i calculate|are] bits per weight[| calculated] / how many bits [per weight does a quant have|does "
        "each weight take]",
        held="what does bpw stand for / how is bpw computed / meaning of bits per weight",
    ),
    _topic(
        "which_quant",
        "Start with Q4_K_M. If you have memory to spare, take Q6_K or Q8_0, and take less than 4 bits only when nothing "
        "else fits.",
        asks="which [quant|quantization|quant type] should i [use|take|choose|pull|pick] / what [quant|quantization] is "
        "best / [which|what] is the best [quant|quantization] / what [quant|quantization] do you recommend / how do i "
        "choose a [quant|quantization] / which quant is [good|right] for [me|my machine|my laptop] / best quant",
        held="what quant should i go for / help me pick a quant / which quantization would you recommend / what's a good "
        "quant to start with",
    ),
    _topic(
        "quant_loss",
        "At 8 and 6 bits the loss is hardly measurable, at 4 bits it is small, and below 3 bits it becomes clear. Large "
        "models suffer less than small ones.",
        asks="how much [quality|accuracy] [do i lose|is lost|does a model lose] [with|by|from] quantization / does "
        "[quantization|quantizing] [hurt|reduce|harm|lower] [quality|accuracy|the model] / is a quantized model "
        "[worse|dumber|less accurate] / does a quantized model lose [quality|accuracy] / how bad is quantization / what do "
        "i lose with a quantized model",
        held="will quantization make my model worse / is there a quality loss when quantizing / how much worse are "
        "quantized models / do quantized models give worse answers",
    ),
    _topic(
        "imatrix",
        "An importance matrix, or imatrix, records how strongly each weight is used on sample text, so that quantization "
        "rounds the important weights more carefully.",
        keys="imatrix / an imatrix / the imatrix / an importance matrix / the importance matrix / imatrix quants",
        asks="how do i [use|make] an imatrix / what is an imatrix [for|good for] / why use an imatrix / do i need an "
        "imatrix",
        held="whats an imatrix / importance matrix meaning / what does the imatrix do / how does an imatrix help",
    ),
    _topic(
        "perplexity",
        "Perplexity says how surprised a model is by a text: the exponential of its mean loss per token. Lower is better, "
        "and it may only be compared with the same tokenizer.",
        keys="perplexity / ppl / the perplexity / perplexity scores",
        asks="is [low|lower|high] perplexity [good|better|bad] / how is perplexity [measured|computed|calculated] / what "
        "does a low perplexity mean / what is a good perplexity",
        held="whats perplexity / how do you measure perplexity / is a high perplexity bad / what does ppl stand for",
    ),
    # --- memory -------------------------------------------------------------------------------------------------------
    _topic(
        "ram_needed",
        "Count the size of the model file, plus the KV cache, plus about half a gigabyte. A 4-billion-parameter model in "
        "Q4_K_M needs about 3 to 4 GB.",
        asks="how much [ram|memory] do i need[| for a model| to run a model| for a 4b model| for a 7b model] / how much "
        "[ram|memory] does [a model|a 4b model|a 7b model|an 8b model] [need|use|take] / how much ram is [enough|needed] "
        "/ do i have enough [ram|memory] / is [8 gb|16 gb|8gb|16gb] [of ram|] enough / how do i estimate the memory of a "
        "model / what are the memory requirements / ram requirements / memory requirements[| of a model]",
        held="how many gb of ram are required / what amount of ram should i have / how much memory will an 8b model take "
        "/ can i run a model with 8 gb of ram / ram needed for a 7b",
    ),
    _topic(
        "kv_cache",
        "The KV cache keeps the keys and values of every token seen so far, so that they are not computed again for each "
        "new token. It grows with the context.",
        keys="the kv cache / kv cache / a kv cache / kv / kv caching / the key-value cache / key value cache",
        asks="why [do we need|is there|does a model need] a kv cache / what is [stored|kept] in the kv cache / what is "
        "the kv cache [for|good for] / why use a kv cache",
        held="whats the kv cache / what does a kv cache store / why is a kv cache needed / kv cache explained / what is "
        "the purpose of the key-value cache",
    ),
    _topic(
        "kv_size",
        "The KV cache needs 2 times layers times KV heads times head size times bytes per value, for each token of the "
        "context.",
        asks="how [big|large] is the kv cache / how much [memory|ram|vram] does the kv cache [need|use|take] / how do i "
        "[calculate|compute|estimate] the [size of the kv cache|kv cache size] / what is the size of the kv cache / what "
        "is the formula for the kv cache / kv cache size / kv cache memory / how many bytes is the kv cache",
        held="what size does the kv cache have / how to compute kv cache memory / formula of the kv cache size / how many "
        "gb does the kv cache take",
    ),
    _topic(
        "kv_quant",
        "Yes: type_k and type_v say how the KV cache is stored. q8_0 instead of f16 halves it at almost no loss; q4_0 saves "
        "more and costs more quality.",
        keys="kv cache quantization / a quantized kv cache / type_k / type_v / cache-type-k / a q8_0 kv cache",
        asks="can [i|we] quantize the kv cache / how do i [quantize|shrink|reduce] the kv cache / how can the kv cache be "
        "made smaller / should i quantize the kv cache / what is the cache type",
        held="is it possible to quantize the kv cache / how to make the kv cache smaller / can the kv cache be stored in "
        "8 bits / what does --cache-type-k do",
    ),
    _topic(
        "mmap",
        "With mmap the file is mapped into memory instead of being read: pages are loaded when they are first used, "
        "loading looks instant, and several processes share one copy.",
        keys="mmap / memory mapping / memory-mapped files / --no-mmap / a memory-mapped model / the mmap option",
        asks="why [use|do we use] mmap / should i [use|disable|turn off] mmap / what does mmap do / is mmap faster",
        held="whats mmap / what is mmap good for / why does llama.cpp use mmap / what happens with mmap on",
    ),
    _topic(
        "mlock",
        "mlock pins the model in RAM, so that the system cannot swap it out. It needs enough free memory and permission "
        "to lock it.",
        keys="mlock / --mlock / memory locking / the mlock option",
        asks="why use mlock / should i use mlock / what does mlock do / how do i keep the model in ram / how do i pin the "
        "model in memory",
        held="whats mlock / what is mlock good for / how to stop the model from being swapped out",
    ),
    _topic(
        "oom",
        "Choose a smaller quant, a shorter context with `-c`, a quantized KV cache or fewer GPU layers. `llmrun plan` "
        "shows what fits before you load.",
        asks="[i am|i'm] out of memory / why do i run out of memory / what [can|should] i do when [i run out of "
        "memory|memory is not enough|it runs out of memory|the model does not fit|the model doesn't fit] / out of memory "
        "error / cuda out of memory / the model does not fit[| into memory| in memory| on my gpu] / how do i fix out of "
        "memory / my model is too [big|large][| for my gpu| for my memory] / how do i [reduce|save|lower] [the|] memory"
        "[| use| usage] / how can i use less [memory|ram|vram]",
        held="it says out of memory / i got an out of memory error, what now / my gpu has not enough memory for the model "
        "/ how to lower memory usage / model too large for ram",
    ),
    _topic(
        "vram",
        "VRAM is the memory on the graphics card. It is several times faster than RAM, so the more of a model fits there, "
        "the faster it decodes.",
        keys="vram / video memory / gpu memory / the vram",
        asks="how much vram do i need / why is vram [important|faster] / what is the difference between ram and vram / ram "
        "or vram / vram vs ram / is vram faster than ram",
        held="whats vram / why does vram matter / ram and vram: what's the difference / what is gpu memory good for",
    ),
    _topic(
        "unified",
        "With unified memory, as on Apple silicon, CPU and GPU share the same memory: no copies over a bus, and a model "
        "may use most of it.",
        keys="unified memory / shared memory on a mac / apple silicon memory / the unified memory of a mac",
        asks="why are macs good for [llms|models|local models] / is apple silicon good for [llms|models|local models] / do "
        "macs have vram / are macs good for running models",
        held="whats unified memory / why is a mac good at running llms / what does unified memory do",
    ),
    _topic(
        "bandwidth",
        "Memory bandwidth is how many gigabytes per second can be read from memory. Decoding reads all active weights for "
        "every token, so bandwidth divided by bytes per token is its speed limit.",
        keys="memory bandwidth / bandwidth / the memory bandwidth / ram bandwidth / gpu bandwidth",
        asks="why [is|does] memory bandwidth [important|matter] / how does [memory bandwidth|bandwidth] affect speed / "
        "what limits the speed of a model / what [limits|determines] [tokens per second|the decode speed|decode speed] / "
        "what is the speed limit of decoding / how fast can a model [be|get]",
        held="whats memory bandwidth / how is bandwidth related to speed / why do people care about memory bandwidth / "
        "what sets the speed limit for generation",
    ),
    _topic(
        "mbu",
        "MBU is memory bandwidth utilization: bytes read per token times tokens per second, divided by the peak bandwidth "
        "of the machine. 60 to 90 percent is good.",
        keys="mbu / memory bandwidth utilization / the mbu / bandwidth utilization / model bandwidth utilization",
        asks="how is mbu [computed|calculated|measured] / what is a good mbu / what does mbu tell me / what does mbu stand "
        "for",
        held="whats mbu / mbu meaning / how do you compute mbu / which mbu is good",
    ),
    # --- speed --------------------------------------------------------------------------------------------------------
    _topic(
        "prefill",
        "Prefill is the first phase: the whole prompt goes through the model in large batches, and the KV cache is "
        "filled. It is limited by computing power.",
        keys="prefill / prefilling / the prefill phase / prompt processing / prompt eval / the prefill / prompt "
        "evaluation",
        asks="what happens [during|in] [prefill|prompt processing] / what limits prefill / how is the prompt processed / "
        "what happens to my prompt",
        held="whats prefill / what does the prefill phase do / what goes on during prefill / prompt processing meaning",
    ),
    _topic(
        "decode",
        "Decode is the second phase: the model makes one token at a time, and each token reads all active weights from "
        "memory. It is limited by bandwidth.",
        keys="decode / decoding / the decode phase / token generation / text generation / generation",
        asks="what happens [during|in] [decode|decoding|generation] / what limits decode / how does a model generate text "
        "/ how are tokens generated / how does a model write text",
        held="whats decode / what does the decode phase do / what goes on during decoding / how is text generated",
    ),
    _topic(
        "decode_bound",
        "Each new token needs every active weight once, but only a few operations per weight. The cores wait for memory, "
        "so bandwidth sets the speed.",
        asks="why is [decoding|decode|generation|token generation|text generation] [memory bound|bound by memory|limited "
        "by memory|memory-bound|bandwidth bound|limited by bandwidth|bound by bandwidth|limited by memory bandwidth] / "
        "why is [decoding|decode|generation] [slow|so slow] / why does decoding depend on [memory|bandwidth] / why is "
        "memory the bottleneck / why do the cores wait for memory / what does memory-bound mean / what is the bottleneck "
        "of [decoding|generation]",
        held="why does memory limit decoding / how come decoding is memory bound / why is generating tokens limited by "
        "memory / what makes decode bandwidth bound / why's decoding slow",
    ),
    _topic(
        "prefill_faster",
        "Prompt tokens are processed together, so each weight that is read serves hundreds of tokens. Generation reads all "
        "weights again for every single token.",
        asks="why is [prompt processing|prefill|prompt eval|reading the prompt] [faster|so much faster|much faster] than "
        "[generation|decode|decoding|token generation|writing] / why is [prefill|prompt processing] [fast|so fast] / why "
        "is [generation|decode|decoding] slower than [prefill|prompt processing] / why is [pp|pp512] [faster|higher] than "
        "[tg|tg128] / why are prompt tokens [faster|cheaper] / prefill vs decode speed / what is the difference between "
        "prefill and decode",
        held="how come the prompt is processed faster than the answer / why is pp higher than tg / why can prefill be "
        "faster than decoding / why does prompt processing go quicker than generation",
    ),
    _topic(
        "ttft",
        "TTFT is the time to first token: from sending the prompt until the first token of the answer. It is mostly "
        "prefill, so it grows with the prompt.",
        keys="ttft / time to first token / the ttft / the time to first token / first token latency",
        asks="why is [the|my] ttft [high|so high|long] / what does ttft [measure|stand for] / how is ttft measured / why "
        "does the first token take [so long|longer|long] / why is the first token slow / why do i wait for the first "
        "token / how do i [reduce|lower] ttft",
        held="whats ttft / ttft meaning / why is the first token so slow to come / what does time to first token tell me",
    ),
    _topic(
        "tpot",
        "TPOT is the time per output token after the first one. Its inverse is the decode speed in tokens per second.",
        keys="tpot / time per output token / the tpot / inter-token latency / the time per output token",
        asks="what does tpot [measure|stand for] / how is tpot [measured|computed] / what is a good tpot",
        held="whats tpot / tpot meaning / what does time per output token say",
    ),
    _topic(
        "tps",
        "Tokens per second is the speed of a model. About 5 to 10 is as fast as people read; count prompt processing and "
        "generation separately.",
        keys="tokens per second / t/s / tok/s / the t/s / tps",
        asks="how many tokens per second [is good|are good|do i need] / what is a good [speed|t/s] / how fast should a "
        "model be / what speed is good enough / how fast is fast enough",
        held="whats t/s / what is a good number of tokens per second / how many t/s is fast / what does tok/s mean",
    ),
    _topic(
        "pp_tg",
        "pp512 is the speed of processing a prompt of 512 tokens, and tg128 the speed of generating 128 tokens, both in "
        "tokens per second.",
        keys="pp512 / tg128 / pp and tg / pp / tg / pp512 and tg128",
        asks="what do pp and tg [mean|stand for] / what do pp512 and tg128 mean / what does pp512 mean / what does tg128 "
        "mean / what does llama-bench [show|print]",
        held="whats pp512 / pp and tg meaning / what are pp512 and tg128 in a benchmark",
    ),
    _topic(
        "depth",
        "Every new token attends to all earlier ones, so a longer context means more KV cache to read for each token, and "
        "decoding slows down.",
        asks="why [does it get slower|does generation slow down|does decoding slow down|does it slow down|is it slower|does "
        "it become slower] [with|in] [long context|a long context|long chats|a long chat|more context|long conversations] "
        "/ does a long context [slow down|make] [the model|decoding|generation][| slower] / why do long chats get "
        "slow[|er] / what is depth in a benchmark / why does speed drop with [depth|context] / how does context length "
        "affect speed",
        held="my chat gets slower and slower, why / why does the model slow down as the context grows / are long chats "
        "slower / what does depth do to speed",
    ),
    _topic(
        "slow",
        "Check that the model fits into fast memory, offload more layers to the GPU, use a smaller quant or model, set "
        "threads to the number of physical cores, and try `llmrun tune`.",
        asks="why is my model [slow|so slow] / how [do|can] i [make|get] [it|my model|the model|inference|generation] "
        "[faster|to run faster] / how do i speed up [inference|generation|my model|a model|it] / my model is "
        "[slow|too slow] / how can i get more tokens per second / how do i improve [speed|performance] / it is [too|very] "
        "slow / speed tips",
        held="what can i do to speed things up / everything runs very slowly / how to get better performance / my llm is "
        "slow, what now / how do i increase tokens per second",
    ),
    # --- the engine ---------------------------------------------------------------------------------------------------
    _topic(
        "gpu_layers",
        "GPU layers say how many layers of the model are placed on the GPU; the rest stays on the CPU. Set it with "
        "`--n-gpu-layers`: the more fit, the faster it runs.",
        keys="gpu layers / n_gpu_layers / --n-gpu-layers / -ngl / ngl / gpu offload / layer offloading / offloading layers",
        asks="what do gpu layers do / how many gpu layers should i [use|set] / how many layers [should i offload|can i put "
        "on the gpu|fit on my gpu] / how do i [offload layers|use the gpu|run on the gpu|use my gpu] / how do i put layers "
        "on the gpu / what does offloading mean / what does --n-gpu-layers do",
        held="whats n_gpu_layers / what is the effect of gpu layers / how can i run a model on my gpu / what does ngl do / "
        "how many layers go on the gpu",
    ),
    _topic(
        "partial_offload",
        "Yes: some layers run on the GPU and the others on the CPU. The CPU part reads slower memory, so it soon "
        "dominates the time per token.",
        keys="partial offload / partial offloading / hybrid inference",
        asks="can [i|a model] [run|split|run a model] [partly|half] on [the|] [gpu|gpu and cpu] / can i split a model "
        "between [cpu and gpu|gpu and cpu] / can cpu and gpu work together / can i use cpu and gpu [together|at the same "
        "time] / what if only half of the layers fit / what if the model only partly fits[| on the gpu]",
        held="is it possible to use both gpu and cpu / can a model be divided between cpu and gpu / what happens if only "
        "some layers fit on the gpu",
    ),
    _topic(
        "threads",
        "Use as many threads as physical cores. Decoding waits for memory, so more threads than that rarely help and "
        "often hurt.",
        keys="threads / n_threads / --threads / the number of threads / the thread count / cpu threads",
        asks="how many threads should i [use|set] / how many threads [are best|is best] / do more threads help / should i "
        "use all [cores|threads] / should i use hyperthreading / does hyperthreading help / how many cores should i use",
        held="what is the best number of threads / how many cpu threads do i set / are more threads faster / whats the "
        "right thread count",
    ),
    _topic(
        "batch",
        "n_batch is the largest number of tokens that one decode call accepts; a long prompt is cut into such pieces. "
        "Larger batches speed up prefill and need more memory.",
        keys="batch size / n_batch / the batch size / --batch-size / batches",
        asks="what does the batch size do / how does [batch size|n_batch] affect speed / what batch size should i use / "
        "should i increase the batch size / what is a good batch size",
        held="whats n_batch / what's the effect of batch size / which batch size is good / how is the batch size used",
    ),
    _topic(
        "ubatch",
        "n_ubatch is the physical batch: how many tokens are really computed at once. It sets the size of the compute "
        "buffer.",
        keys="ubatch / n_ubatch / the ubatch size / --ubatch-size / the physical batch / micro batch",
        asks="what does n_ubatch do / what is the difference between n_batch and n_ubatch / what ubatch size should i use "
        "/ n_batch vs n_ubatch / how does ubatch differ from batch",
        held="whats n_ubatch / n_ubatch meaning / how is n_ubatch different from n_batch / what is the micro batch for",
    ),
    _topic(
        "flash_attn",
        "Flash attention computes attention in tiles without storing the whole score matrix. It saves memory, is often "
        "faster at long contexts and gives the same result up to rounding.",
        keys="flash attention / flash_attn / flash attn / --flash-attn / flashattention / fa",
        asks="should i [use|turn on|enable] flash attention / is flash attention [faster|exact|good] / why is flash "
        "attention faster / what does flash attention do / why use flash attention",
        held="whats flash attention / what is the benefit of flash attention / does flash attention change the result / "
        "when should flash attention be on",
    ),
    _topic(
        "context",
        "The context length, n_ctx, is how many tokens the model can see at once: prompt, history and answer together. A "
        "longer one needs more memory.",
        keys="context length / n_ctx / the context length / context size / the context window / context window / the "
        "context / -c",
        asks="how long can my [prompt|chat] be / how many tokens can a model [see|remember] / what does n_ctx do / how "
        "[do|can] i [set|change|increase] the context[| length| size] / how much context do i need / what context length "
        "should i use",
        held="whats the context window / what is meant by context length / how can i get a longer context / how much text "
        "can the model see at once / what's n_ctx",
    ),
    _topic(
        "context_full",
        "When the context is full, the model cannot take more tokens. Start a new chat, shorten the prompt, or set a "
        "larger context with `-c` if memory allows.",
        asks="what happens when the context is full / the context is full / what if my [prompt|text|chat] is too long / my "
        "prompt is too long / prompt longer than context / what happens if i exceed the context[| length] / why does the "
        "model forget / context overflow / why did the model forget what i said",
        held="my prompt is longer than the context, what now / what if i run out of context / what happens at the end of "
        "the context window",
    ),
    _topic(
        "rope",
        "RoPE, rotary position embedding, turns queries and keys by an angle that depends on their position, so that "
        "attention sees the distance between tokens.",
        keys="rope / rotary position embedding / rotary embeddings / rope scaling / position embeddings",
        asks="how does a model know the position of a token / how are positions encoded / how does rope work / what does "
        "rope scaling do",
        held="whats rope / what is rotary position embedding for / how are token positions represented",
    ),
    _topic(
        "multi_gpu",
        "Yes: llama.cpp spreads the layers over all GPUs, and `--tensor-split` sets the share of each. That adds up their memory; "
        "the layers still run one after another.",
        keys="tensor split / --tensor-split / tensor_split / multi-gpu / multiple gpus / split mode",
        asks="can i use [two|several|multiple|more than one|many] [gpus|graphics cards] / how do i [use|split a model over] "
        "[two|multiple|several] gpus / does llama.cpp support multiple gpus / are two gpus faster / do two gpus help",
        held="is it possible to use 2 gpus / how to spread a model over several gpus / i have two graphics cards, can i "
        "use both",
    ),
    _topic(
        "rpc",
        "RPC offload places layers on another machine: it runs llama.cpp's RPC server, and its devices appear like local "
        "ones. The network adds a delay to every token.",
        keys="rpc / rpc offload / the rpc backend / an rpc server / the rpc server / --rpc / rpc offloading",
        asks="can i [use|run a model on|split a model over] [two|several|multiple|many] [machines|computers] / can i use "
        "the gpu of another [machine|computer] / how do i run a model over [several|two] [machines|computers] / how do i "
        "use rpc / can two computers work together / what does rpc do",
        held="whats rpc offload / is it possible to spread a model over several computers / how can i use another machine "
        "for some layers / what does the rpc server do",
    ),
    _topic(
        "moe",
        "MoE means mixture of experts: each layer has many small networks, the experts, and a router picks a few of them "
        "for each token. The model is large, but each token uses only a part.",
        keys="moe / a moe / moe models / mixture of experts / a mixture of experts / a moe model / an moe / experts",
        asks="what is an expert[| in a model] / how do moe models work / what does moe stand for / what is a router in a "
        "moe / what does a3b mean",
        held="whats moe / moe meaning / how does mixture of experts work / what are the experts in a moe",
    ),
    _topic(
        "moe_speed",
        "A token reads only its few active experts, so decoding needs far fewer bytes than the file size suggests. All "
        "experts still have to fit into memory.",
        keys="active parameters / the active parameters / active weights",
        asks="why are moe models [fast|faster|so fast] / are moe models faster / is a moe faster than a dense model / how "
        "fast are moe models / why is a moe faster / how much memory does a moe need / does a moe need less memory / what "
        "is the difference between dense and moe",
        held="how come moe models are so quick / moe vs dense speed / why does a mixture of experts decode faster / do all "
        "experts have to be in memory",
    ),
    _topic(
        "expert_offload",
        "Keep attention and shared weights on the GPU and the experts in RAM, as llama.cpp does with `--n-cpu-moe`. "
        "Few experts are read per token, so this stays quick.",
        keys="expert offload / expert offloading / --n-cpu-moe / n_cpu_moe / cpu-moe",
        asks="how do i [run|offload] a [big|large] moe[| with little vram| on a small gpu] / can i keep the experts in "
        "[ram|cpu memory|main memory] / should the experts be on the cpu / can i put the experts on the cpu / how do i run "
        "a moe with little vram",
        held="whats n-cpu-moe / is it possible to leave the experts on the cpu / how to run a large moe when vram is small",
    ),
    _topic(
        "repack",
        "Repacking rearranges quantized weights at load time for the vector instructions of the CPU. It can speed up or "
        "slow down, depending on the type, and it needs extra memory.",
        keys="repack / repacking / weight repacking / --no-repack / cpu repack",
        asks="should i [use|turn off|disable] repacking / is repacking faster / what does repack do / why does repacking "
        "need memory",
        held="whats repacking / what is weight repacking good for / does repacking help",
    ),
    _topic(
        "backends",
        "llama.cpp runs on NVIDIA GPUs with CUDA, on Apple GPUs with Metal, on most GPUs with Vulkan, on AMD with ROCm, "
        "and on any CPU.",
        keys="cuda / metal / vulkan / rocm / backends / a backend / llama.cpp backends",
        asks="which [gpus|hardware|devices] [are|is] supported / does [it|llama.cpp] support [amd|nvidia|apple|intel][| "
        "gpus] / can i use [an amd|an nvidia|an intel|a radeon] [gpu|card] / which backends [are there|exist|does "
        "llama.cpp have] / does it [run|work] on a mac / what hardware do i need",
        held="whats a backend / which graphics cards work / will it run on amd / what gpus does llama.cpp support",
    ),
    _topic(
        "cpu_only",
        "Yes: a model runs on the CPU alone. Small models in 4 bits are quick enough to read along; large ones are limited "
        "by the bandwidth of the RAM.",
        asks="can i run a model without a gpu / do i need a gpu / is a gpu [needed|required|necessary] / can i [use|run it "
        "on|run a model on|run models on] [only|just|] [the|a|my] [cpu|laptop] / does it work without a gpu / i have no gpu "
        "/ can a model run on the cpu / is the cpu [fast|good] enough / can my laptop run a model",
        held="must i have a gpu / will a model run without graphics card / is it possible to run on cpu only / what if i "
        "have no gpu",
    ),
    _topic(
        "avx",
        "Vector instructions such as AVX2, AVX-512 or NEON process many numbers at once. llama.cpp uses them, mostly to "
        "speed up prefill.",
        keys="avx / avx2 / avx-512 / avx512 / neon / simd / vector instructions / amx",
        asks="does avx[2|-512|512] help / do i need avx2 / why does avx matter / which cpu instructions matter",
        held="whats avx2 / what are vector instructions good for / does llama.cpp use avx512",
    ),
    _topic(
        "llama_cpp",
        "llama.cpp is an open C++ program and library that runs language models from GGUF files on CPUs and GPUs. llmrun "
        "uses it as its engine.",
        keys="llama.cpp / llamacpp / llama cpp / the llama.cpp library / ggml",
        asks="which engine does llmrun use / what engine [do you use|is this|runs here|are you running on] / what does "
        "llmrun use to run models / who computes the tokens",
        held="whats llama.cpp / what is llama.cpp used for / which library does llmrun run on / what engine is behind "
        "llmrun",
    ),
    # --- sampling -----------------------------------------------------------------------------------------------------
    _topic(
        "temperature",
        "Temperature divides the logits before sampling: below 1 the likely tokens become likelier, above 1 the choice "
        "gets more random, and 0 always takes the most likely token.",
        keys="temperature / the temperature / temp / sampling temperature / --temp",
        asks="what does temperature do / what temperature should i use / what is a good temperature / what happens with a "
        "[high|low] temperature / how does temperature [work|change the output] / why is the answer different every time "
        "/ how do i make [answers|the output|it] more [random|creative]",
        held="whats temperature / what's the effect of the temperature / which temperature is good / what does temp 0.8 "
        "mean / explain the temperature setting",
    ),
    _topic(
        "greedy",
        "Greedy decoding always takes the most likely token, as with temperature 0. The same prompt then gives the same "
        "answer, but text may repeat itself.",
        keys="greedy decoding / greedy sampling / greedy / temperature 0 / temp 0",
        asks="how do i get the same answer [every time|each time|twice] / how do i make [it|the output|answers] "
        "deterministic / what happens at temperature 0 / what does temperature 0 mean / how can the output be repeatable",
        held="whats greedy decoding / how can i get deterministic output / what is greedy sampling good for",
    ),
    _topic(
        "top_k",
        "Top-k keeps only the k most likely tokens, for example 40, and samples among them.",
        keys="top-k / top_k / top k / --top-k / top-k sampling",
        asks="what does top-k do / what top-k should i use / what is a good top-k / what does top_k 40 mean / how does "
        "top-k work",
        held="whats top-k / what's the effect of top_k / which top k is good / top-k meaning",
    ),
    _topic(
        "top_p",
        "Top-p keeps the smallest set of tokens whose probabilities add up to p, for example 0.95, and samples among them.",
        keys="top-p / top_p / top p / --top-p / nucleus sampling / top-p sampling",
        asks="what does top-p do / what top-p should i use / what is a good top-p / what does top_p 0.9 mean / how does "
        "top-p work",
        held="whats top-p / what's the effect of top_p / which top p is good / top-p meaning / what is the nucleus in "
        "sampling",
    ),
    _topic(
        "min_p",
        "Min-p drops every token that is less likely than p times the most likely one, so the choice is narrow when the "
        "model is sure and wide when it is not.",
        keys="min-p / min_p / min p / --min-p / min-p sampling",
        asks="what does min-p do / what min-p should i use / what is a good min-p / what does min_p 0.05 mean / how does "
        "min-p work",
        held="whats min-p / what's the effect of min_p / which min p is good / min-p meaning",
    ),
    _topic(
        "repeat",
        "The repeat penalty lowers the logits of tokens that appeared recently, so that the model does not loop. 1.0 turns "
        "it off; 1.1 is a mild value.",
        keys="repeat penalty / repetition penalty / the repeat penalty / --repeat-penalty / presence penalty",
        asks="why does [the model|it|my model] repeat itself / how do i stop [it|the model] from repeating[| itself] / my "
        "model repeats [itself|the same sentence] / how do i avoid [repetition|loops] / the model is stuck in a loop / why "
        "does it [loop|repeat]",
        held="whats the repeat penalty / what can i do against repetition / the model keeps repeating the same words / "
        "how to stop loops in the output",
    ),
    _topic(
        "seed",
        "The seed starts the random numbers of the sampler. With the same seed, prompt, settings and machine you get the "
        "same answer again.",
        keys="the seed / a seed / seed / --seed / the random seed",
        asks="what does the seed do / what is a seed [for|good for] / should i set a seed / how do i set the seed / why set "
        "a seed",
        held="whats a seed / what's the seed used for / why would i set the random seed",
    ),
    _topic(
        "max_tokens",
        "The token limit, max_tokens or n_predict, says how many tokens the model may generate. The answer ends there, or earlier when the model produces its "
        "end token.",
        keys="max_tokens / max tokens / n_predict / --max-tokens / -n",
        asks="how do i [limit|set|control] the [length|size] of the answer / how do i make answers [shorter|longer] / why "
        "is my answer cut off / why does the answer stop [early|in the middle] / why is the answer cut off / how do i get "
        "[longer|shorter] answers",
        held="whats n_predict / what does max_tokens limit / my answer was cut off, why / how can i limit the answer "
        "length",
    ),
    _topic(
        "grammar",
        "A grammar in GBNF says which tokens are allowed next, so the output always has the wanted form, for example "
        "valid JSON.",
        keys="a grammar / gbnf / grammars / a gbnf grammar / constrained output / structured output / json mode",
        asks="how do i get json[| output] / can the model [write|answer in|return|output] json / how do i force [json|a "
        "format] / how can i constrain the output / how do i get structured output",
        held="whats gbnf / what is a grammar used for / how can i make the model output valid json",
    ),
    _topic(
        "stop",
        "Generation stops at the end token of the model, at a stop string that you set, or at the token limit.",
        keys="a stop string / stop strings / a stop word / stop sequences / stop tokens",
        asks="when does [the model|it|generation] stop / how does the model know when to stop / how do i stop [the "
        "model|generation] / why does [the model|it] not stop / the model does not stop / when is an answer finished / how "
        "does an answer end",
        held="whats a stop string / how does generation end / at which point does the model stop writing / my model won't "
        "stop",
    ),
    _topic(
        "logits",
        "Logits are the raw scores that the model gives to every token of its vocabulary. Softmax turns them into "
        "probabilities.",
        keys="logits / a logit / the logits / logit bias / softmax / token probabilities",
        asks="what does the model output / what comes out of the model / how do logits become probabilities / what does "
        "softmax do",
        held="whats a logit / logits meaning / how are logits turned into probabilities",
    ),
    _topic(
        "sampling",
        "Sampling picks the next token from the probabilities of the model. Temperature, top-k, top-p and min-p decide how "
        "bold the choice is.",
        keys="sampling / a sampler / the sampler / samplers / token sampling / sampling settings",
        asks="how is the next token [chosen|picked|selected] / how does a model [choose|pick] the next [token|word] / which "
        "sampling settings should i use / what are good sampling settings / what does the sampler do",
        held="whats a sampler / how does the model decide on the next word / what is the job of the sampler",
    ),
    # --- how models work ----------------------------------------------------------------------------------------------
    _topic(
        "token",
        "A token is a piece of text, often a word or a part of one; an English word is about 1.3 tokens. Models read and "
        "write tokens, not letters.",
        keys="a token / tokens / token / llm tokens",
        asks="how many tokens [is|are in] a word / how long is a token / how many words is a token / what are tokens made "
        "of / why do models use tokens",
        held="whats a token / tokens meaning / what is meant by a token / how many tokens does a word have",
    ),
    _topic(
        "tokenizer",
        "The tokenizer cuts text into tokens and turns them into numbers, and back again. Every model family has its own, "
        "stored in the GGUF.",
        keys="a tokenizer / the tokenizer / tokenization / tokenizers / tokenizing / bpe / sentencepiece",
        asks="how is text [split into tokens|turned into tokens|cut into tokens] / how does text become numbers / what does "
        "the tokenizer do / how does a tokenizer work",
        held="whats a tokenizer / what is the job of a tokenizer / how do words become tokens / tokenizer meaning",
    ),
    _topic(
        "vocab",
        "The vocabulary is the list of all tokens that a model knows, often 32 to 256 thousand. The model gives each of "
        "them a score at every step.",
        keys="the vocabulary / vocabulary / vocab / vocab size / the vocab size / the vocab",
        asks="how many tokens does a model know / how [big|large] is the vocabulary / how large is a vocabulary",
        held="whats the vocab / vocabulary size meaning / how many tokens are in the vocabulary",
    ),
    _topic(
        "bos",
        "BOS is the begin-of-sequence token that many models expect once at the very start. Two of them, or none, can make "
        "the answers worse.",
        keys="bos / the bos token / a bos token / bos token / the begin token / begin of sequence",
        asks="what does bos [stand for|mean] / why do i need a bos token / do i need a bos token / what is the first token",
        held="whats bos / bos meaning / what is the bos token used for / why does a prompt start with bos",
    ),
    _topic(
        "eos",
        "EOS is the end token: when the model produces it, the answer is finished. Chat models often have one of their own "
        "for the end of a turn, called EOT.",
        keys="eos / the eos token / an eos token / eos token / eot / eog / the end token / end of sequence",
        asks="what does eos [stand for|mean] / what does eot [stand for|mean] / which token ends an answer / what is the "
        "end of turn token",
        held="whats eos / eos meaning / what is the eos token used for / which token marks the end",
    ),
    _topic(
        "chat_template",
        "A chat template writes system, user and assistant messages in exactly the form that the model was trained on. It "
        "is stored in the GGUF, in Jinja.",
        keys="a chat template / the chat template / chat templates / chat template / a prompt template / jinja templates / "
        "prompt format",
        asks="why do i need a chat template / what happens with the wrong chat template / how are chat messages formatted / "
        "how does a chat become a prompt / what does the chat template do",
        held="whats a chat template / chat template meaning / what is the chat template for / how do messages turn into a "
        "prompt",
    ),
    _topic(
        "system_prompt",
        "The system prompt comes before the conversation and tells the model how to behave: its role, its tone and its "
        "rules.",
        keys="a system prompt / the system prompt / system prompts / system prompt / a system message / the system message",
        asks="how do i set a system prompt / how do i give the model a role / what does the system prompt do / how do i "
        "change the [behavior|tone] of the model",
        held="whats a system prompt / system prompt meaning / what is a system message good for",
    ),
    _topic(
        "embedding",
        "An embedding is a list of numbers that stands for a token or a text. Texts of similar meaning have similar "
        "embeddings, which is used for search.",
        keys="an embedding / embeddings / embedding / embedding models / an embedding model / token embeddings / vectors",
        asks="how do i compare [texts|the meaning of texts] / how does semantic search work / what are embeddings used for",
        held="whats an embedding / embeddings meaning / what is an embedding model good for",
    ),
    _topic(
        "attention",
        "Attention lets each token look at the earlier ones: its query is compared with their keys, and their values are "
        "mixed by how well they match.",
        keys="attention / self-attention / the attention mechanism / an attention head / attention heads / queries and keys",
        asks="how does attention work / how does a token look at other tokens / what does attention do / what are keys and "
        "values / what are queries, keys and values",
        held="whats attention / attention explained / what is self attention for / what are attention heads",
    ),
    _topic(
        "gqa",
        "With grouped-query attention, GQA, several query heads share one key and value head. The KV cache becomes several "
        "times smaller.",
        keys="gqa / grouped-query attention / grouped query attention / kv heads / n_head_kv / multi-query attention",
        asks="why use gqa / what does gqa [stand for|do] / why are there fewer kv heads / how does gqa save memory",
        held="whats gqa / gqa meaning / what is grouped query attention good for",
    ),
    _topic(
        "transformer",
        "A transformer is a stack of equal layers, each with attention and a feed-forward network. Almost all language "
        "models are transformers.",
        keys="a transformer / transformers / the transformer / the transformer architecture / a layer / layers / the layers",
        asks="how does a language model work inside / what is [inside|in] a language model / what is a model made of / what "
        "is in a layer / how is a language model built",
        held="whats a transformer / transformer meaning / how is a transformer built / what does a layer consist of",
    ),
    _topic(
        "llm",
        "A large language model is a neural network that predicts the next token of a text. From that it learns to answer, "
        "to write and to code.",
        keys="an llm / llms / llm / a large language model / large language models / a language model / language models",
        asks="how does an llm work / how do llms work / what does llm stand for / what does a language model do / how does "
        "ai write text",
        held="whats an llm / llm meaning / what is a large language model good for / how does a language model work",
    ),
    _topic(
        "parameters",
        "Parameters, or weights, are the learned numbers of a model. 7B means seven billion of them; at 4 bits that is "
        "about 4 GB.",
        keys="parameters / a parameter / weights / the weights / model weights / the parameters / 7b / params",
        asks="what does [7b|8b|4b|70b] mean / what does the b in [7b|8b|70b] mean / how big is a 7b model / what is the "
        "difference between 7b and 70b / what are weights",
        held="whats a parameter / what do 7b and 13b mean / weights meaning / what does 4b stand for",
    ),
    _topic(
        "instruct",
        "A base model only continues text. An instruct model was trained further to follow instructions and to chat; for "
        "questions, take the instruct version.",
        keys="an instruct model / instruct models / a base model / base models / a chat model / instruction tuning / instruct",
        asks="what is the difference between base and instruct / base or instruct / should i use a base or an instruct model "
        "/ what does instruct mean / what does -it mean / base vs instruct",
        held="whats an instruct model / how do base and instruct models differ / base model vs chat model / what does "
        "instruct in a model name mean",
    ),
    _topic(
        "lora",
        "LoRA is a small adapter: two thin matrices per layer that are added to the frozen weights. It changes the "
        "behavior of a model at little cost.",
        keys="lora / a lora / loras / a lora adapter / an adapter / adapters / lora adapters / qlora",
        asks="how do i use a lora / how does lora work / can i use a lora with gguf / what does a lora do / what does lora "
        "stand for",
        held="whats a lora / lora meaning / what is a lora adapter good for / how does a lora change a model",
    ),
    _topic(
        "finetune",
        "Fine-tuning trains a finished model further on your own examples. It needs far more memory than running it; LoRA "
        "makes it cheaper.",
        keys="fine-tuning / finetuning / fine tuning / finetunes / a fine-tune",
        asks="how do i [train|fine-tune|finetune] a model[| on my data| on my texts] / can i train [a|my own] model / can i "
        "train a model on my [data|texts|laptop] / can i teach a model new things",
        held="whats fine-tuning / is it possible to train a model on my own data / how can a model learn my texts",
    ),
    _topic(
        "speculative",
        "In speculative decoding a small draft model guesses several tokens, and the large model checks them in one batch. "
        "The result is the same, only faster when the guesses are good.",
        keys="speculative decoding / a draft model / speculative sampling / draft models / the draft model",
        asks="how does speculative decoding work / does speculative decoding [change the result|help] / why is speculative "
        "decoding faster / how do i use a draft model / how can two models make one faster",
        held="whats speculative decoding / what is a draft model for / how does speculative decoding speed things up",
    ),
    _topic(
        "prompt_cache",
        "Prompt caching keeps the KV cache of a prompt. When the next prompt starts with the same tokens, they need not be "
        "processed again, and the first token comes sooner.",
        keys="prompt caching / a prompt cache / the prompt cache / prefix caching / kv reuse / context reuse",
        asks="why is the second [question|answer|message] faster / does it process the whole chat again / is the prompt "
        "processed again / can the prompt be cached / how does prompt caching work",
        held="whats prompt caching / what is a prompt cache good for / why does the second message start sooner",
    ),
    _topic(
        "parallel",
        "Several requests are decoded in one batch, so each weight that is read serves all of them: the total speed rises, "
        "while each request gets a little slower.",
        keys="continuous batching / parallel decoding / parallel requests / batched decoding",
        asks="can i [serve|run] several [users|requests|chats] [at once|at the same time|in parallel] / how does a server "
        "handle many [users|requests] / why is batching [faster|efficient] / can many users share a model",
        held="whats continuous batching / how are several users served at once / why does batching raise total throughput",
    ),
    _topic(
        "thinking",
        "A reasoning model writes its thoughts before the answer, often between think tags. That helps with hard "
        "questions, and costs many tokens and time.",
        keys="a reasoning model / reasoning models / thinking / thinking models / reasoning / chain of thought / think tags",
        asks="why does the model think[| so long] / what are the think tags / how do i turn off thinking / why does the model "
        "write its thoughts / what does thinking mode do",
        held="whats a reasoning model / what is thinking mode / why do some models think before they answer",
    ),
    _topic(
        "hallucination",
        "A hallucination is a wrong answer that sounds right. A model predicts likely text and does not look facts up, so "
        "check what matters.",
        keys="a hallucination / hallucinations / hallucinating / hallucination",
        asks="why [do models|does my model|do llms|does a model] [make things up|hallucinate|invent things|lie|tell lies] / "
        "why is the answer wrong / why do models give wrong answers / do models [lie|hallucinate]",
        held="whats a hallucination / how come models invent facts / why do llms make stuff up",
    ),
    # --- llmrun -------------------------------------------------------------------------------------------------------
    _topic(
        "llmrun",
        "llmrun is a command-line program that pulls, runs and measures language models on your own machine, with "
        "llama.cpp as its engine.",
        keys="llmrun / the llmrun program / llmrun itself / the llmrun project",
        asks="what does llmrun do / what can llmrun do / what is llmrun [for|good for] / why should i use llmrun / what "
        "program is this / what can i do with llmrun",
        held="whats llmrun / what is llmrun used for / what is this llmrun program about",
    ),
    _topic(
        "pull",
        "Type `llmrun pull qwen3:4b`. It downloads the file into the Hugging Face cache, resumes if it was interrupted and "
        "checks the sha256.",
        keys="llmrun pull / the pull command / pulling a model",
        asks="how [do|can] i [pull|download|get|fetch|install] [a|another|a bigger|a new] model[| with llmrun| from hugging "
        "face] / [pull|download] a model / how do i get models / where do i get models / which command [downloads|pulls] a "
        "model / how to [pull|download|get] a model / where can i download models",
        held="what command do i use to download a model / how would i fetch a model / i want to download a model / how to "
        "pull models with llmrun",
    ),
    _topic(
        "run",
        "Type `llmrun run qwen3:4b` to start a model; `llmrun run --help` lists the options.",
        keys="llmrun run / the run command",
        asks="how [do|can] i [run|start|use|launch|try] a model[| with llmrun| locally| on my machine| on my computer] / run "
        "a model / how to [run|start|use] a model[| locally] / which command [runs|starts] a model / how do i chat with a "
        "model / how can i talk to a model / how do i start llmrun / how do i use llmrun",
        held="what command do i use to run a model / how would i start a model / i want to run a model locally / how to "
        "chat with a model using llmrun",
    ),
    _topic(
        "bench",
        "Type `llmrun bench qwen3:4b`. It measures prompt processing and generation in tokens per second, and how much of "
        "the memory bandwidth was used.",
        keys="llmrun bench / the bench command / benchmarking / a benchmark",
        asks="how [do|can] i [bench|benchmark|measure|test the speed of] [a|my|the] model[| with llmrun] / bench a model / "
        "benchmark a model / how do i measure [speed|tokens per second|the speed|performance] / how to [bench|benchmark] a "
        "model / which command measures the speed / how fast is my model / how do i see how fast a model is / how do i run a "
        "benchmark",
        held="what command do i use to benchmark a model / how would i measure the speed of a model / i want to bench a "
        "model / how to test how fast my model is",
    ),
    _topic(
        "plan",
        "Type `llmrun plan qwen3:8b`. It shows what a model needs on each device and whether it fits, before anything is "
        "loaded.",
        keys="llmrun plan / the plan command",
        asks="how [do|can] i [see|check|know|find out|tell] [if|whether] a model [fits|will fit|can run][| on my machine| "
        "into memory| here] / will [it|this model|the model|a model] fit[| on my machine| into my memory] / does the model "
        "fit / can my [machine|computer|gpu] run [it|this model|a 70b model|a big model] / which command shows what fits / "
        "will a 70b run here",
        held="what command tells me if a model fits / how would i know whether my machine can run a model / i want to know "
        "if a model will fit / can i check if a model fits before loading",
    ),
    _topic(
        "list",
        "Type `llmrun list`. It shows the models in your Hugging Face cache and their sizes.",
        keys="llmrun list / the list command",
        asks="which models do i have / how [do|can] i [list|see|show] [my|all|the|all my] [models|downloaded "
        "models|installed models] / list [my|all|] models / show [my|all] models / what models [are installed|are on my "
        "disk|do i have] / how do i see what is installed",
        held="what command lists my models / how would i see my downloaded models / i want to see which models are here",
    ),
    _topic(
        "where",
        "They lie in the standard Hugging Face cache, usually ~/.cache/huggingface/hub, so other tools can share them.",
        asks="where are [my|the|downloaded|] [models|model files] [stored|saved|kept] / where does llmrun [store|save|keep|put] "
        "[models|its models|the models|files] / where is [my|the] model[| file] / in which folder are [the|my] models / what "
        "is the hugging face cache / where do [models|my models|downloads] go / where can i find my models",
        held="in what directory are models saved / where do the downloaded files end up / which folder holds my models",
    ),
    _topic(
        "tune",
        "Type `llmrun tune qwen3:4b`. It tries settings such as threads, batch size and repacking, measures them and keeps "
        "the fastest.",
        keys="llmrun tune / the tune command / autotuning / tuning",
        asks="how [do|can] i find the [best|fastest] [settings|options|configuration] / which settings are [best|fastest] / "
        "what are the best settings[| for my machine] / how do i [tune|optimize] [a model|llmrun|the settings|settings] / "
        "what does llmrun tune do",
        held="what command finds the best settings / how would i tune a model / i want the fastest settings",
    ),
    _topic(
        "offline",
        "Yes. Once a model is on your disk, everything runs on your machine: no network, and no text leaves it.",
        asks="can i [use it|run models|run a model|work|use a model|use llmrun] [offline|without internet|without a network] / "
        "do i need [internet|the internet|a network|an internet connection] / does it work offline / is my data [private|"
        "safe|sent anywhere|sent to a server] / is it private / is [anything|my text|my chat|my data] sent to [a server|the "
        "cloud|the internet] / do my texts leave my machine / why run models locally / what are the advantages of local "
        "models / why [should i|] run a model locally",
        held="will it run with no internet connection / does my chat stay on my machine / is an internet connection "
        "required / are my prompts private",
    ),
    _topic(
        "sha256",
        "A sha256 is a fingerprint of a file. If it matches the one that the hub states, every byte of the download is "
        "right.",
        keys="sha256 / a sha256 / the sha256 / a checksum / checksums / a hash",
        asks="how do i [check|verify] [a download|my download|a file|a model file] / is my [download|file] "
        "[complete|corrupt|broken|ok] / how do i know that a download is [complete|correct]",
        held="whats a sha256 / what is the checksum for / how can i verify my download",
    ),
    _topic(
        "resume",
        "Run the same `llmrun pull` again: it continues where it stopped, and checks the whole file at the end.",
        asks="my download [stopped|was interrupted|failed|broke off|is stuck] / can i [resume|continue] a download / how do "
        "i [resume|continue] a download / does it resume downloads / what if the download [is interrupted|stops|fails|breaks "
        "off] / the connection broke during the download / i lost the connection during the download",
        held="is it possible to resume downloads / the download was aborted, what now / will an interrupted pull continue",
    ),
    _topic(
        "model_ref",
        "Give a name from the catalog such as qwen3:4b, a Hugging Face repo with a quant such as user/repo:Q4_K_M, or the "
        "path of a GGUF file.",
        asks="how do i name a model / which model names [are there|can i use|work] / what [is a|can a] model reference[| be] "
        "/ what names can i [use|give] / can i [run|use] [my own|a local] [gguf|file|gguf file] / can i use a model from "
        "hugging face / how do i [use|run] a [local|gguf] file / what does qwen3:4b mean",
        held="how is a model named in llmrun / is it possible to run my own gguf file / how do i refer to a model on "
        "hugging face",
    ),
    _topic(
        "which_model",
        "Choose by memory: with 8 GB try qwen3:4b, with 16 GB an 8B model, and with 32 GB or more a 30B MoE, each in "
        "Q4_K_M. `llmrun plan` shows what fits.",
        asks="which model should i [use|pull|run|try|choose|take|get] / what model [is best|is good|do you recommend|should i "
        "use|should i try] / what is [the best|a good] [model|local model] / can you recommend a model / recommend a model / "
        "best model / what is the best model for [8 gb|16 gb|my laptop] / how do i choose a model",
        held="what model would you suggest / help me choose a model / which local model is good / what's a good model for "
        "16 gb",
    ),
)
