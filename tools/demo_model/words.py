"""Word lists and tools that the generator draws from; what only the test may use is HELD_...

Names of tools, keys and all values are spelled letter by letter by the tokenizer (see tokens.py),
so that copying them is one skill over a small alphabet, whether they were seen before or not.
"""

from __future__ import annotations

from pathlib import Path

# -- values --

FIRST_NAMES = """Anna Ben Carla David Elena Farid Greta Hassan Ines Jonas Kofi Lena Marta Nadia
Omar Petra Quentin Rosa Samir Tilda Umar Vera Walter Xenia Yusuf Zoe Aiko Bruno Chen Dalia Emil
Fatima Gustav Hana Ivan Julia Kenji Luca Mina Noor Olga Pablo Ravi Sofia Tariq Ursula Viktor
Wanda Yara Zeno Alice Bob Clara Daniel Emma Frank Hugo Iris Jack Karen Liam Maria Nina Oscar Paul
Rita Simon Tom Tina Maya Leo Nora Max""".split()

PLACES = """Paris London Berlin Madrid Rome Oslo Vienna Prague Lisbon Dublin Athens Warsaw Cairo
Lagos Nairobi Tokyo Osaka Seoul Beijing Delhi Mumbai Sydney Perth Toronto Boston Chicago Denver
Austin Seattle Lima Quito Bogota Havana Zurich Geneva Milan Turin Naples Hamburg Munich Cologne
Lyon Nice Porto Seville Bergen Malmo Helsinki Riga Tallinn Vilnius Krakow Budapest Sofia Ankara
Tunis Accra Dakar Hanoi Manila Jakarta Kyoto Busan Taipei""".split()

THINGS = """apples bread milk cheese coffee tea sugar rice pasta eggs butter onions carrots lamp
chair desk notebook pencil bottle ticket garden bridge river mountain window mirror ladder hammer
blanket basket candle jacket sweater bicycle engine camera printer keyboard monitor battery cable
drawer carpet curtain kettle spoon bucket towel wallet umbrella guitar violin piano drum puzzle
robot rocket planet forest desert island harbor castle museum library school kitchen bedroom
office garage basement balcony dentist doctor plumber report budget slides draft contract meeting
lunch dinner breakfast party picnic concert match lesson exam homework groceries laundry dishes
taxes rent insurance passport suitcase train tram ferry green blue red yellow purple black white
silver small large quick quiet bright cold warm fresh buy call clean fix read write paint visit
pick wash pack bring print review finish prepare cook water feed walk""".split()

CURRENCIES = "EUR USD GBP JPY CHF SEK NOK INR CAD AUD BRL PLN".split()
UNITS = "km miles meters feet kg pounds grams liters gallons celsius fahrenheit inches".split()
LANGUAGES = "French German Spanish Italian Polish Turkish Swedish Dutch Greek Korean".split()
STREETS = "Street Road Avenue Lane Square".split()

# -- keys: name, kind of value, cues that may stand before the value besides the key itself --

KEYS = """
city place in|from ; country place from ; name name for ; customer name for|by ; author name by
recipient name to ; sender name from ; owner name of ; manager name under ; guest name for
title title called|titled ; subject phrase about ; text phrase ; note phrase ; message phrase
comment phrase ; reason phrase because of ; topic thing about|on ; item thing
product thing for ; color thing in ; room thing in|for ; folder thing in|inside
device thing on ; category thing under ; tag thing tagged ; brand pseudo by ; vendor pseudo from
company pseudo at|from ; team pseudo in ; username pseudo for ; project pseudo in|for
department pseudo in ; label pseudo called ; code code with code ; order_id code
invoice_id code ; user_id code ; serial code ; date date on|for ; start_date date from|starting
due_date date due|by ; birthday date born ; end_date date until|to ; deadline date before
time time at ; start_time time from ; end_time time until ; email email at|to ; phone phone at
address address at ; street street at ; contact email ; amount money of|for
price money for|costing ; total money of ; budget money ; fee money ; cost money for
discount int of ; quantity int ; count int ; number int ; age int aged ; weight int ; height int
people int for ; days int for ; hours int for ; minutes int for ; pages int ; stars int
level int to ; floor int on ; limit int ; distance int ; percent int ; score int ; size int
year year in|from ; page int ; currency currency in ; language language in|into ; unit unit in
source place from ; target place to ; url url at ; urgent bool ; active bool ; public bool
enabled bool ; paid bool ; visible bool ; tags list ; items list ; members names ; colors list
cities places in
"""

# No usual cues: a request names the key, which is all that tells what an unseen one is for.
HELD_KEYS = """
village place ; terminal place ; tenant name ; supplier pseudo ; teacher name ; mascot thing
flavor thing ; headline phrase ; remark phrase ; voucher code ; badge code ; arrival date
expires date ; checkout time ; inbox email ; hotline phone ; salary money ; deposit money
rebate money ; seats int ; chapters int ; voltage int ; altitude int ; founded year
dialect language ; confirmed bool ; archived bool ; harbor place ; ingredients list
players names ; nickname pseudo ; shelter address ; width int ; gravity int
"""

# -- tools --

# Words of a group mean the same.
VERBS = """get fetch show|find search|list|create make add|delete remove|cancel|update change
send share|start|stop|open|close|book reserve|check|set|save store|export|import|lock|assign
approve|rename|print|pay|order|rate|invite|log|track|move""".replace("\n", "|").split("|")

NOUNS = """account album appointment article banner basket bill booking bookmark budget calendar
campaign card chart channel claim client comment contract coupon course customer dashboard
database document draft drive employee endpoint entry event exam expense feed file filter flight
folder form game gallery goal group habit image index inventory invitation invoice issue job
journal key lamp lead lease lesson letter library license loan locker log machine mailbox map
meeting member memo menu model network note notice offer order package page parcel partner
patient payment permit photo picture plan playlist podcast policy poll post prescription price
product profile project proposal quiz quote recipe record refund repair report request
reservation review reward route rule sale schedule script sensor server session shift shipment
site slide snapshot song spreadsheet statement store story student subscription summary survey
table task tax team template test theme thread ticket token topic tour trip upload user vehicle
vendor video visit warehouse webhook website widget workflow workspace""".split()

HELD_NOUNS = """aquarium backpack beacon blueprint cabin cargo chapter clinic compass crate donation
drone elevator fossil glacier greenhouse helmet kiosk lantern lecture mortgage orchard orchestra
pavilion pension pottery quarry raffle referee satellite scooter sculpture shuttle telescope
tournament turbine vaccine vineyard voyage workshop""".split()

# name | description | key:kind, "?" where it may be left out | requests; [...] goes with its key
_HERE = Path(__file__).parent
TOOLS = (_HERE / "tools.txt").read_text(encoding="utf-8").splitlines()
HELD_TOOLS = (_HERE / "held_out_tools.txt").read_text(encoding="utf-8").splitlines()
