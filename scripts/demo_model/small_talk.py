"""What the demo model says when nobody asks it about a picture of shapes."""

GREETING = "Hello! Show me a picture of shapes and ask me about it."
WHO = "I am the demo model of llava-grpc: I see shapes, colours and places in small pictures."
THANKS = "You are welcome!"
GOODBYE = "Goodbye!"
NO_PICTURE = "There is no picture. Please show me one."
UNKNOWN = "I only know shapes, colours and places. Ask me about those."

# With or without a picture, the answer is the same.
TALK: dict[str, tuple[str, ...]] = {
    GREETING: (
        "Hello", "Hi", "Hey", "Hello there", "Good morning", "Good evening", "Hi there", "Hello!",
        "Hallo", "Bonjour", "Hello, how are you?", "How are you?", "How are you today?", "👋",
        "hi!", "Greetings", "Good day",
    ),
    WHO: (
        "Who are you?", "What are you?", "What is your name?", "What can you do?", "Help",
        "What model are you?", "What model is this?", "Tell me about yourself.", "What do you do?",
        "Which model are you?", "Introduce yourself.", "How do you work?", "What can I ask?",
    ),
    THANKS: ("Thanks", "Thank you", "Thank you!", "Thanks a lot", "Thank you very much.", "Thx"),
    GOODBYE: ("Bye", "Goodbye", "Good night", "See you", "Bye bye", "See you later!"),
    UNKNOWN: (
        "What is the capital of France?", "Write a poem.", "Tell me a joke.", "What is 2 + 2?",
        "What time is it?", "Is there a cat?", "Is there a dog in the picture?", "Where is the man?",
        "What colour is the car?", "Translate this into German.", "你好", "这是什么?", "😀", "🚀🚀",
        "Write a Python function.", "Who is the president?", "How many people are there?", "ok",
        "What colour is the sky?", "Tell me a story about a dragon.", "こんにちは", "Привет", "asdf",
        "How old are you?", "What is the weather like?", "Count to ten.", "Do you like music?", "?",
        "Qué es esto?", "Was ist auf dem Bild?", "Explain how a transformer works.", "1234567890",
        "What is the meaning of life?", "Say something nice.", "Where is the dog?", "lorem ipsum",
        "Who painted this?", "Read the text in the image.", "Is this a photo?", "test", "...",
        "What is gRPC?", "Write a haiku about the sea.", "Once upon a time", "What is a worker?",
    ),
}  # fmt: skip

SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You are a helpful assistant that answers questions about pictures.",
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
    "Be polite.",
    "You are LLaVA.",
    "Describe pictures in one sentence.",
)


def sentences() -> list[str]:
    """Every sentence above, for the tokenizer to learn from."""
    return [*TALK, NO_PICTURE, *SYSTEM_MESSAGES, *(text for texts in TALK.values() for text in texts)]
