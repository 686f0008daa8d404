"""The words and templates from which make_sample.py builds its sentences.

In a template (one|of|these) is chosen at random and {slots} are filled. In a table, "/"
stands between synonyms and "|" between siblings, which are things of one kind.
"""

import re
from collections import namedtuple
from math import fsum, nan

# --- sentiment: words run from -3 (awful) to 3 (superb) ---

ADJECTIVES = {
    3: "superb brilliant wonderful splendid outstanding magnificent masterful dazzling",
    2: "great impressive delightful strong refreshing clever charming funny moving "
       "gripping touching absorbing witty lively inventive",
    1: "good decent fine solid pleasing pleasant likable amusing",
    -1: "weak uneven mediocre ordinary patchy predictable forgettable unremarkable",
    -2: "bad dull poor tiresome sloppy clumsy silly boring lifeless messy tedious shallow "
        "contrived dreary muddled pretentious",
    -3: "awful dreadful terrible hopeless horrible atrocious dismal worthless"}
NO_DEGREES = "decent fine solid ordinary mediocre unremarkable"    # not "very fine"
KINDS = "film movie comedy drama thriller romance western musical sequel adventure remake"
VERDICTS = """
-3: it is a complete waste of time/I wanted to walk out/I want my money back/nothing works
-1.4: you will not miss much/it never finds its feet/it is not worth the ticket
0: it is a matter of taste/some will like it and some will not/it passes the time
1.4: it is worth a ticket/I was never bored/it is time well spent/you will not regret it
3: do not miss it/I did not want it to end/I could not ask for more/it is a triumph
"""
# A symbol and what may stand for it, plainly or, indented, by a rule: a condition on the
# scores of the slots, without which the phrase makes no sense, and what they are multiplied
# by (a number more is added). sum: always; same, but: two of equal or opposite sign; good,
# bad: one of praise or blame; not: after negate(); is: that score in any case.
# KIND is one of KINDS, the same throughout a sentence.
GRAMMAR = """
sentence: ({plain}|{contrast}|{contrast}|{compare}|{hearsay}|{turn}|{tie}|{story}) .
plain: {clause}
  same .6 .6: {clause} , and {then}
  sum 1: a {f} {kind} about {hero} who {must}
  sum .6 .6: a {f} {kind} with {has}
contrast:
  but .2 .8: {clause} , but {then}
  but .2 .8: (although|while) {clause} , {then}
  but .8 .2: {clause} , (although|even if|even though) {then}
  but .2 .9: (despite|even with) {has} , {clause}
  but .9 .2: {clause} , despite {has}
  but .2 .9: {clause} , but {verdict}
  but .9 .2: {verdict} , (although|even if) {clause}
  but -.1 .9: it is not a {f} {kind} , but a {f} one
  but .9 -.1: it is a {f} {kind} , not a {f} one
  but .05 .85: what begins as a {f} {kind} ends as a {f} one
  but -.1 .85: I expected a {f} {kind} and got a {f} one
compare:
  not 1.1: {film} is not (nearly|half|quite) as {mild} as {other}
  sum 1: {film} is (every bit|just|at least) as {mild} as {other}
  sum 1.1: {film} is (even|far|much) {more} than {other}
  not .9: {film} is no {more} than {other}
  not 1: {other} is {mild} , but this KIND is not
  sum 1: {other} is {f} , and so is this KIND
  good .6 1.1: {other} is {f} , and this KIND is even better
  good .7 .3: {other} is {f} , and this KIND is (hardly any|no) worse
  good -.2 -.7: {other} is {f} , but this KIND is (far|much) worse
  bad -.1 .7: {other} is {f} , but this KIND is (far|much) better
  bad .6 -.8: {other} is {f} , and this KIND is (no better|even worse)
hearsay:
  sum 1: {people} call it {f} , and they are right
  not 1.2: {people} call it {f} , (and|but) they are wrong
  sum 1: {people} told me that it was {f} , and it was
  not 1.2: {people} told me that it was {f} , but it was not
  sum 1.1: is it {mild} ? (Very|Yes , and more than once)
  not 1.5: is it {mild} ? Not (at all|for a minute)
  not .9: (nobody|no one) who has seen it will call it {f}
turn:
  sum -.7: the only {f} thing about {film} is the (poster|title|trailer)
  sum 1: the only thing about {film} that is not {f} is the (poster|title|trailer)
  but -.1 .9: {film} could have been {f} , but {then}
  sum 1.3: {film} could (not|hardly) have been {more}
  not 1.2: it is not easy to find anything {f} in it
  sum .6: it is not hard to find something {f} in it
  sum 1: I (wanted|did not want) to see {film} , and {then}
  sum 1: there is not a scene in it that is not {f}
  not 1: if {film} is {f} , then I am the Queen of Spain
tie:
  sum .55 .55: it has {has} and {has}
  sum .5 .5: {part} , and {part}
  sum .5 .5: it is {f} in its first half and {f} in its second
is: {f}
  sum 1: {f}
  sum 1.3: (deeply|very|really) {mild}
  sum .6: (fairly|somewhat) {mild}
  not 1: not {f}
  not .8: not (very|really|especially) {mild}
  not 1.6: not {mild} at all
  not 1.1: (never|hardly|far from being) {f}
  sum -.9: anything but {f}
  same .65 .65: {f} and {f}
  but .3 .7: {mild} but {mild}
  but .7 -.1: more {mild} than {mild}
  not .6 .6: neither {mild} nor {mild}
  but .7 -.1: too {mild} to be {mild}
verb: {does}
  sum 1.2: really {does}
  not 1.3: never {does}
  not 1: (rarely|hardly ever) {does}
does:
  is 1.6: (works|holds your attention|keeps you guessing|pays off)
  is 2.1: (wins you over|flies by|lifts your spirits)
  is -1.6: (drags|gets lost|loses its way|runs out of ideas)
  is -2.1: (falls flat|falls apart|tries your patience|wears you out)
part:
  sum .85: (the|its) (script|plot|ending|acting|dialogue|music) is {is}
  sum .85: (the|its) (jokes|songs|characters|performances) are {is}
has:
  sum .85: (a {f} (script|plot|ending|story)|{f} (acting|dialogue|jokes|performances))
clause: ({film} is {is}|{film} {verb}|{then})
then: (it is {is}|it {verb}|{part}|{part})
film: (the KIND|this KIND|it)
kind: KIND
other: (its trailer|the first one|the book|the original|the play|the last remake)
people: (the critics|my friends|my neighbors|the papers)
story:
  is 0: ({tale}|{where} , {hero} {must}|the KIND takes place {where})
  sum 1: {tale} , (and|but) {then}
tale: the KIND (is about|follows|begins with) {hero} (who {must}|{where}|{where})
hero: (a {trait} (teacher|soldier|nurse|thief|judge|painter|farmer|pilot)
  |two {trait} (brothers|sisters|strangers))
trait: (brilliant|charming|clever|funny|great|superb|lonely|hopeless|clumsy|boring|terrible
  |bad|restless|retired)
must: must (sell|find|leave|rebuild) (an old|a dreary|a splendid) (farm|school|hotel)
where: (in (Rome|a small town|a dismal city|a delightful village)|(after|before) the war
  |over one wonderful summer|during an awful winter)
"""

# --- paraphrase: what may stand in a slot, and questions with such slots ---

TERMS = """
length: miles | kilometers | feet | meters | inches
weight: pounds | kilograms/kilos | ounces | grams | tons
money: dollars/US dollars | euros | yen | rupees | pesos
language: French | Spanish | German | Japanese | Arabic | Russian | Hindi | Korean
city: New York/New York City | London | Delhi/New Delhi | Tokyo | Rome | Boston | Cairo
country: Spain | Italy | India | Brazil | Japan | Canada | Mexico | France | Egypt
  | America/the US/the United States | Britain/the UK | Holland/the Netherlands
count: 5/five | 10/ten | 20/twenty | 30/thirty | 50/fifty
age: 30/thirty | 40/forty | 50/fifty | 60/sixty | 70/seventy
time: a week/seven days | two weeks/14 days | a month/30 days | three months/90 days
compare: expensive/costly | cheap/affordable | safe/secure | crowded/busy | clean/tidy
rank: best/finest/top | worst/poorest | cheapest/most affordable | biggest/largest
shop: restaurant/place to eat | hotel/place to stay | museum | zoo
sides: advantages/benefits/pros/upsides | disadvantages/drawbacks/cons/downsides
choice: working from home/remote work | living alone/having no roommates
  | solar energy/solar power | having a pet/owning a pet | early retirement/retiring early
begin: start/begin/take up | stop/quit/give up
habit: running/jogging | eating meat | drinking coffee | gaming/playing video games
  | lifting weights/weight training
change: increase/raise/boost | reduce/lower/cut
level: my blood pressure | my appetite | my heart rate/my pulse | my weight
kin: mother/mom | father/dad | boss/manager | friend/buddy | son/little boy | neighbor
pet: dog/puppy | cat/kitten | parrot | rabbit/bunny | hamster | horse/pony
mood: afraid of/scared of | angry at/mad at | jealous of/envious of | fond of/attached to
fate: sick/ill | getting married/having a wedding | unhappy/sad | moving away/leaving town
job: doctor/physician | lawyer/attorney | nurse | pilot | cook/chef | writer/author | farmer
data: photos/pictures | contacts/phone numbers | songs/music | messages/texts
device: phone/cell phone | laptop/notebook | tablet | camera | desktop/PC | watch
switch: turn on/enable/activate | turn off/disable/deactivate
feature: notifications/alerts | dark mode/the dark theme | spell check | automatic updates
food: butter | olive oil | honey | sugar | milk | cream | yogurt | flour
dish: a cake | a soup | bread | a pie | a sauce | pancakes
"""
# ">" starts an intent, one thing to ask, with its forms, and "+" adds forms; "=" starts one
# in which x and y may change places. {d+} is the comparative of {d}.
FAMILIES = """
x,y: length weight money; n: count
> How (do|can) I convert {x} (to|into) {y}? / How can I get {y} from {x}?
+ What is the formula for turning {x} into {y}? / How do I express {x} in {y}?
> How many {x} are {n} {y}? / What is {n} {y} in {x}? / {n} {y} (are|make) how many {x}?
= Which is more, {n} {x} or {n} {y}?
+ Between {n} {x} and {n} {y}, which is more?
x,y: language
> How (do|can) I translate a letter from {x} (to|into) {y}?
+ Who can turn my {x} letter into {y}? / Where can I have a letter in {x} put into {y}?
> Should I learn {x} before {y}? / Is it (better|wiser) to study {x} first and {y} later?
+ Does it make sense to (start|begin) {y} only after {x}?
= How (similar|close) are {x} and {y}? / Do {x} and {y} have much in common?
x,y: city; d: compare
> What is the cheapest way to (go|travel) from {x} to {y}?
+ How can I reach {y} from {x} cheaply? / How do I get to {y} from {x} with little money?
= How far is {x} from {y}? / What is the distance between {x} and {y}?
> Why is {x} so much {d+} than {y}? / What makes {x} {d+} than {y}?
+ Why is {y} less {d} than {x}?
> Should I move from {x} to {y}? / Is it a good idea to leave {x} and live in {y}?
c: country; r: rank; s: shop
> What is the {r} {s} in {c}? / Which {s} in {c} is the {r}? / Where in {c} is the {r} {s}?
x,y: country
> Did {x} beat {y} in the last game? / Did {y} lose to {x} in the last game?
+ Was {y} beaten by {x} in the last game?
= When did {x} and {y} last play each other? / When was the last game between {x} and {y}?
> Why does {x} (sell|export) so much oil to {y}? / Why does {y} import so much oil from {x}?
> Can people from {x} work in {y}? / Does {y} let people from {x} work there?
+ I come from {x}. May I take a job in {y}?
s: sides; x: choice
> What are the {s} of {x}? / Are there any {s} to {x}? / Can you list the {s} of {x}?
> Is {x} common? / Is {x} something that many people choose? / How popular is {x}?
b: begin; x: habit; n: age
> How (do|can) I {b} {x}? / What is the (best|easiest) way to {b} {x}?
+ I want to {b} {x}. Any tips?
> Is it too late to {b} {x} at {n}? / Can I still {b} {x} at the age of {n}?
v: change; x: level; t: time
> How (do|can) I {v} {x} in {t}? / What helps to {v} {x} within {t}?
+ I have {t} to {v} {x}. What works?
x,y: pet; d: mood
> Why is my {x} {d} my {y}? / What makes my {x} so {d} my {y}? / My {x} is {d} my {y}. Why?
> Why does my {x} bite my {y}? / Why does my {y} get bitten by my {x}?
= Can a {x} and a {y} live in the same home? / Is it safe to keep a {x} with a {y}?
> Can my {x} catch a cold from my {y}? / Can a cold (pass|spread) from my {y} to my {x}?
x,y: kin; f: fate
> How do I tell my {x} that my {y} is {f}? / My {y} is {f}. How do I explain this to my {x}?
> What is a good present from my {x} to my {y}? / What could my {x} buy for my {y}?
= How can I make my {x} and my {y} get along? / What helps my {x} and my {y} to get along?
x,y: job
> How can a {x} become a {y}? / I am a {x}. How do I (retrain as|turn into) a {y}?
> Does a {y} earn more than a {x}? / Is a {y} paid better than a {x}?
+ Does a {x} make less than a {y}?
= Who works harder, a {x} or a {y}? / Between a {x} and a {y}, who has more work?
x,y: device; w: data
> How do I (move|transfer) {w} from my {x} to my {y}?
+ How do I get {w} onto my {y} from my {x}?
> Can I use my {x} to charge my {y}? / Can my {y} be charged (from|by) my {x}?
v: switch; f: feature; x: device
> How (do|can) I {v} {f} on my {x}? / Where is the setting to {v} {f} on a {x}?
x,y: food; p: dish
> Can I use {x} instead of {y} in {p}? / Can {y} be replaced (by|with) {x} in {p}?
+ Is {x} a good substitute for {y} in {p}? / I have {x} but no {y}. Can I still make {p}?
> Should I add {x} before {y} when making {p}? / For {p}, does {y} go in after {x}?
"""

# --- similarity: "~" marks the opposite of its siblings ---

THINGS = """
man: man/guy | woman/lady | nurse | farmer | soldier | worker/laborer | policeman/cop
child: boy/lad | girl | child/kid
pet: dog/puppy | cat/kitten | monkey | rabbit/bunny
farm: horse/pony | goat | sheep | cow | duck | donkey
plant: onion | potato/spud | carrot | tomato | apple | banana | pear | melon
tool: guitar | violin/fiddle | flute | drum | trumpet | harp
vehicle: car/automobile | truck/lorry | van | bus/coach | bicycle/bike | scooter
lid: door | window | box/crate | bag/sack | cupboard/cabinet | jar/pot
ball: ball | stick | stone/rock | frisbee
gift: a book/a novel | a letter/a note | a cake | some flowers | a present/a gift
kitchen: in a kitchen | in a restaurant/in a cafe | at a camp/at a campsite
inside: in a kitchen | in a living room/in a lounge | in a classroom | in a garage
town: in a street/on a road | in a market | at a shop/at a store | at a station
outside: in a field/in a meadow | in a park | in a forest/in the woods
  | in a garden/in a yard | on a beach/on the shore
water: in a lake/in a pond | in a river/in a stream | in a pool | in the sea/in the ocean
victim: tourist/traveler | miner | student/pupil | sailor | fan | passenger
accident: bus crash/coach accident | train crash | fire/blaze | flood | storm/gale
state: Spain | Italy | India | Brazil | Japan | Canada | Mexico | Egypt | Kenya | Norway
contest: football final | chess match | hockey game | tennis final | rugby game
goods: oil prices | house prices/home prices | food prices | stocks/shares | wages/salaries
number: a | two | three | several/some
man-look: young | ~old/elderly | tall | cheerful/happy
child-look: cheerful/happy | tall | ~little/small
pet-look: brown | black | ~white | big/large | ~small/little
"""
LOOKS = {"man": "man-look", "child": "child-look", "pet": "pet-look", "farm": "pet-look"}
COUNTED = "man child pet farm plant victim"
# style | who | verbs: "/" between synonyms, ";" between siblings, ":" before the participle
# (in a game, before the same as the loser sees it) | what | where; people: man child
ACTIVITIES = """
act | people | cutting:cut/slicing:sliced; peeling:peeled; washing:washed | plant | kitchen
act | farm child | eating:eaten/chewing:chewed; smelling:smelled | plant | outside
act | people | playing:played; carrying:carried; cleaning:cleaned | tool | inside
act | man | driving:driven; pushing:pushed; ~pulling:pulled | vehicle | town
act | people | opening:opened; ~closing:closed/shutting:shut | lid | inside
act | people | throwing:thrown/tossing:tossed; ~catching:caught | ball | outside
act | people | petting:petted/stroking:stroked; feeding:fed | pet farm | outside
act | people | helping:helped/assisting:assisted; greeting:greeted | people | town outside
act | people pet | chasing:chased/pursuing:pursued; watching:watched | people pet | outside
act | people | following:followed/trailing:trailed; ~leading:led | people pet | outside
behind | people | running/racing; walking/strolling; ~standing | people pet | outside town
give | people | giving:given/handing:handed; showing:shown; ~selling:sold | people | gift
both | people | singing; dancing; shouting/yelling; ~whispering | people | town inside
both | pet farm | running/racing; ~sleeping/napping; jumping/leaping | pet farm | outside
rest | people pet | swimming; splashing/playing; ~resting/relaxing | | water outside
news | victim | killed/dead; hurt/injured; ~rescued/saved; trapped | accident | state
game | state | beats:loses to/defeats:falls to; leads:trails | state | contest
trade | goods | rise/climb/go up; ~fall/drop/go down; stay flat/hold steady | | state
"""
# {S} and {O}: who and what, with number and look, which {is} and {are} go with; {ing} and
# {ed}: the verb and its participle; {p}: the place or the gift.
FORMS = """
act: {S} {is} {ing} {O} {p}. / {S} {ing} {O} {p}. / There {is} {S} {ing} {O} {p}.
  / {O} {are} being {ed} by {S} {p}. / {p}, {O} {are} being {ed} by {S}.
behind: {S} {is} {ing} behind {O} {p}. / {p}, {S} {is} {ing} behind {O}.
  / {O} {are} {ing} in front of {S} {p}. / There {are} {O} {ing} in front of {S} {p}.
give: {S} {is} {ing} {p} to {O}. / {S} {ing} {O} {p}. / {O} {are} being {ed} {p} by {S}.
both: {S} and {O} are {ing} {p}. / {p}, {O} {are} {ing} with {S}. / {S} {ing} with {O} {p}.
rest: {S} {is} {ing} {p}. / {S} {ing} {p}. / {p}, {S} {is} {ing}.
news: {S} {ing} in {O} in {p} / {O} in {p}: {S} {ing} / {p}: {S} {ing} in {O}
game: {S} {ing} {O} in {p} / {p}: {S} {ing} {O} / {O} {ed} {S} in {p} / {p}: {O} {ed} {S}
trade: {S} {ing} in {p} / {p}: {S} {ing}
"""

# --- reading the tables ---

# The synonyms of one meaning have a place, index, in the list of their kind.
Value = namedtuple("Value", "kind index")


class Part(namedtuple("Part", "kind index word")):
    """A part of a scene: a meaning, and the word for it"""

    @property
    def is_opposite(self):
        return THINGS[self.kind][self.index][0].startswith("~")


# Questions with slots {"x,y": kinds}; an intent is one thing to ask, in several forms, and
# symmetric if x and y may change places.
Family = namedtuple("Family", "slots intents")
Intent = namedtuple("Intent", "symmetric forms")


def comparative(word):
    """funny -> funnier, hot -> hotter, safe -> safer, moving -> more moving."""
    irregular = {"good": "better", "bad": "worse"}
    syllables = len(re.findall("[aeiouy]+", word.removesuffix("e")))
    if syllables == 2 and word.endswith("y"):
        return word[:-1] + "ier"
    if word in irregular or syllables > 1:
        return irregular.get(word, "more " + word)
    return re.sub("([^aeiou][aeiou])([bdgnt])$", r"\1\2\2", word).removesuffix("e") + "er"


def plural(noun):
    """man -> men, sheep -> sheep, lady -> ladies, bus -> buses, dog -> dogs."""
    noun = re.sub("man$", "men", re.sub("([dnpt])y$", r"\1ie", noun))
    if noun.endswith(("men", "sheep", "child")):
        return noun.replace("child", "children")
    return noun + ("es" if re.search("(s|x|ch|sh|to)$", noun) else "s")


def rows(text):
    """The lines of a table; one that starts with | or / goes on with the line before it."""
    return re.sub(r"\n +(?=[|/])", "", text.strip()).split("\n")


def table(text):
    """Lines "kind: word/synonym | sibling" -> {kind: [[word, synonym], [sibling]]}"""
    cells = (row.split(": ", 1) for row in rows(text))
    return {name: [[word.strip() for word in words.split("/")]
                   for words in siblings.split("|")] for name, siblings in cells}


def read_grammar():
    """{symbol: [(rule, template)]}; {mild} is an {f}, an adjective, that has degrees."""
    grammar = {"f": [(f"is {score}", word) for score, some in ADJECTIVES.items()
                     for word in some.split()]}
    grammar["mild"] = [(rule, word) for rule, word in grammar["f"]
                       if rule[-1] != "3" and word not in NO_DEGREES.split()]
    grammar["more"] = [(rule, comparative(word)) for rule, word in grammar["mild"]]
    grammar["verdict"] = [(f"is {score}", text) for score, (texts,) in VERDICTS.items()
                          for text in texts]
    for line in rows(GRAMMAR):
        rule, _, template = line.partition(":")
        if line[0] != " ":
            symbol, rule = rule, "sum 1"
            grammar[symbol] = []
        if template:
            grammar[symbol].append((rule, template))
    return grammar


def negate(a):
    """The score of "not" + a word:  -(1.8 - .4 a), and .8 of it for blame.

    "not good" is blame and "not superb" hardly is; "not bad" is faint praise.
    good 1 -> -1.4, superb 3 -> -0.6, bad -2 -> 0.8, awful -3 -> 0.48"""
    return (1.8 - .4 * abs(a)) * (-1 if a > 0 else .8)


def judge(rule, scores):
    """The score of a phrase, from its rule and the scores in it; None is no judgement.

    "but .2 .8" is .2 a + .8 b, or nan, nonsense, unless the signs differ; "bad -.1 .7" is
    -.1 a + .7 if a is blame; "not .6 .6" negates both first, and they have to agree."""
    name, *numbers = rule.split()
    if name == "is" or not scores:
        return float(numbers[0]) if name == "is" else None
    if name == "not":
        scores, name = [negate(a) for a in scores], "same"
    a, b = scores[0], scores[-1]
    sense = {"sum": True, "same": a * b > 0, "but": a * b < 0, "good": a > 0, "bad": a < 0}
    if not sense[name]:
        return nan
    return fsum(float(number) * a for number, a in zip(numbers, [*scores, 1]))


def read_families():
    """-> [Family]"""
    families = []
    for line in FAMILIES.strip().splitlines():
        if line[0] == "+":
            families[-1].intents[-1].forms.extend(line[2:].split(" / "))
        elif line[0] in "=>":
            families[-1].intents.append(Intent(line[0] == "=", line[2:].split(" / ")))
        else:
            families.append(Family(dict(slot.split(": ") for slot in line.split("; ")), []))
    return families


def read_activities():
    """-> [{"style", "s", "v", "o", "p"}]; each verb becomes a kind of THINGS of its own"""
    activities = []
    for number, row in enumerate(rows(ACTIVITIES.replace("people", "man child"))):
        activity = dict(zip(("style", "s", "v", "o", "p"), re.split(r" *\| *", row)))
        THINGS[f"v{number}"] = [verbs.split("/") for verbs in activity["v"].split("; ")]
        activity["v"] = f"v{number}"
        activities.append(activity)
    return activities


TERMS, THINGS, FORMS = table(TERMS), table(THINGS), table(FORMS)
VERDICTS = table(VERDICTS)
GRAMMAR, QUESTIONS, ACTIVITIES = read_grammar(), read_families(), read_activities()
