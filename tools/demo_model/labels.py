"""Sentences with labels, for classification: sentiment, intent, spam, language, topic."""

from __future__ import annotations

GOOD = """great good excellent wonderful lovely fantastic amazing perfect pleasant superb brilliant
delightful impressive charming enjoyable outstanding""".split()
BAD = """bad terrible awful horrible poor disappointing boring broken useless dreadful annoying
ugly unpleasant mediocre rude dirty""".split()
PLAIN = "average ordinary normal typical standard usual common okay".split()
SUBJECTS = """movie phone hotel service food staff product game app book show delivery room
coffee battery screen support website staff view music story acting price quality""".split()
SENTIMENT_FRAMES = [
    "The {s} was {a}.",
    "I think the {s} is {a}.",
    "What a {a} {s}!",
    "{a} {s}, {b} {t}.",
    "The {s} is {a} and the {t} is {b}.",
    "We found the {s} {a}.",
    "Honestly, the {s} seemed {a} to me.",
    "My {s} turned out to be {a}.",
]
LOVE = {
    "positive": ["I love this {s}.", "I would buy this {s} again.", "Best {s} ever!",
                 "The {s} made me happy.", "I recommend the {s} to everyone."],
    "negative": ["I hate this {s}.", "I want my money back for this {s}.", "Worst {s} ever!",
                 "The {s} made me angry.", "Never again this {s}.", "The {s} does not work."],
    "neutral": ["The {s} arrived on Monday.", "I have a {s}.", "The {s} is from last year.",
                "There is a {s} here.", "They showed the {s} to us."],
}  # fmt: skip

INTENTS = {
    "greeting": ["hello there", "good morning", "hi, how are you", "hey", "good evening to you"],
    "goodbye": ["see you later", "bye for now", "good night", "talk to you soon", "goodbye then"],
    "thanks": ["thank you so much", "thanks a lot", "many thanks for that", "I am very grateful"],
    "refund": ["I want my money back", "please refund my purchase", "how do I get a refund",
               "refund me for the broken {s}"],
    "shipping": ["where is my parcel", "when will my {s} arrive", "my delivery is late",
                 "has my {s} been shipped yet"],
    "cancellation": ["cancel my subscription", "I want to end my contract", "stop my membership",
                     "please cancel the order of the {s}"],
    "password": ["I forgot my password", "I cannot log in", "my login does not work",
                 "how do I reset my password"],
    "billing": ["I was charged twice", "there is an error on my invoice", "why is my bill so high",
                "the invoice for the {s} is wrong"],
    "weather": ["will it rain tomorrow", "how warm is it outside", "is it sunny today",
                "do I need an umbrella"],
    "music": ["play some jazz", "turn up the radio", "next song please", "play my favorite album"],
    "alarm": ["wake me up at seven", "set an alarm for six", "wake me early tomorrow"],
    "complaint": ["your {s} is a disgrace", "I am very unhappy with the {s}",
                  "this {s} is not acceptable", "I want to complain about the {s}"],
    "opening": ["when do you open", "are you open on Sunday", "what are your opening hours",
                "how late is the shop open"],
    "reservation": ["a table for two tonight", "I want to reserve a room", "is a table free",
                    "book us a room for the weekend"],
    "joke": ["tell me a joke", "make me laugh", "say something funny"],
    "directions": ["how do I get to the station", "which way is the airport",
                   "where is the next pharmacy", "show me the way home"],
}  # fmt: skip

SPAM = [
    "You won {n} dollars! Click here now!", "Claim your free {s} today, limited offer!!!",
    "Cheap pills, {n} percent off, order now", "Congratulations, you are our winner number {n}!",
    "Earn {n} dollars a week from home", "Urgent: verify your bank account at once",
    "Hot singles are waiting for you", "Double your bitcoin in {n} hours",
    "FREE {s}!!! Only today! Click!", "Your prize of {n} dollars is waiting, reply now",
    "Lose {n} pounds in a week, guaranteed", "Exclusive deal: {s} for free, act fast",
]  # fmt: skip
HAM = [
    "Can we move the meeting to {n}?", "I left the {s} on your desk.", "Are you free for lunch?",
    "The report is attached, {n} pages.", "Thanks for the {s} yesterday.",
    "Mom says dinner is at {n}.", "Could you look at the {s} when you have time?",
    "The train is late, I will be there at {n}.", "Happy birthday! See you on Sunday.",
    "Please send me the notes about the {s}.", "Your appointment is on Monday at {n}.",
    "We need {n} chairs for the class.",
]  # fmt: skip

LANGUAGE_WORDS = {
    "English": "the house is old and we live here with our dog but today she goes to work",
    "German": "das Haus ist alt und wir wohnen hier mit unserem Hund aber heute geht sie zur "
    "Arbeit",
    "French": "la maison est vieille et nous habitons ici avec notre chien mais elle va au travail",
    "Spanish": "la casa es vieja y vivimos aquí con nuestro perro pero hoy ella va al trabajo",
    "Italian": "la casa è vecchia e abitiamo qui con il nostro cane ma oggi lei va al lavoro",
    "Dutch": "het huis is oud en wij wonen hier met onze hond maar vandaag gaat ze naar haar werk",
    "Swedish": "huset är gammalt och vi bor här med vår hund men idag går hon till arbetet",
    "Polish": "dom jest stary i mieszkamy tutaj z naszym psem ale dzisiaj ona idzie do pracy",
}

TOPICS = {
    "sports": "team goal coach league player stadium referee tennis striker race",
    "science": "atom cell experiment theory telescope physics species laboratory energy gene",
    "cooking": "recipe oven flour sauce onion boil pepper chef garlic dough",
    "finance": "bank stock loan market investor profit bond tax currency shares",
    "travel": "flight beach hotel passport luggage island tourist airport cruise map",
    "music": "song guitar concert album singer melody drum band chorus piano",
}
TOPIC_FRAMES = [
    "The {a} and the {b} are in the news.",
    "We talked about the {a}, then the {b}.",
    "A new {a} with a {b}.",
    "Everything about the {a}, the {b} and the {c}.",
    "Why every {a} needs a {b}.",
]
