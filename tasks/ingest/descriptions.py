"""Free text made safe: of a description only those words stay that many descriptions share.

A series is chosen by words like "t1_mprage_sag" or "Abdomen portal venous 5.0", and a structure by "GTV" or "Kidney
left". A name, a number of a record, a date, a place or a department is not among them. So a text is cut into tokens
and a token stays only where it is

- a word of the vocabulary below, in any case and with or without accents;
- several of them written as one (`AbdomenRoutine`, `T2TSE`), with numbers of up to three digits between them;
- a setting with its unit or letter (`5mm`, `b1000`, `TE90`, `3x3x5`), a reconstruction kernel (`B30f`, `Br40`);
- a number of up to three digits, alone or as a decimal. A row of numbers (a date, a telephone number) goes whole.

The rest goes token by token. A surname that is also such a word ("Hand", "Long") may stay: as a word like any other,
it says no more about a patient than the word does.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from functools import lru_cache

LONGEST = 64

# Where.
_ANATOMY = """
abd abdo abdomen abdominal abdomino abdpel acetabulum achilles adductor adnexa adrenal adrenals airway airways
alveolar amygdala ankle anterior aorta aortic aorto appendix arch arm arms arterial arteries artery ascending atria
atrial atrium auricle autochthon axilla axillae axillary basal basilar bigtoe bile biliary bladder bladderwall body
bone bones bony bowel bowelbag brachial brachiocephalic brachium brain brainstem breast breasts bronchi bronchial
bronchus buttock calcaneus calf callosum capsule cardiac carina carotid carotids carpal carpus cartilage cauda caudate
cava cavity cecum celiac central cerebellar cerebellum cerebral cerebri cerebrum cervical cervix cheek chest chestwall
chiasm choroid clavicle clavicles clavicula coccyx cochlea cochleae collarbone colon column common condyle conus cord
cornea coronary corpus cortex cortical cranial cranium csf cspine cyst descending diaphragm disc disk distal dorsal
duct ductus duodenum ear ears elbow elbows endometrium ent entire epididymis esophagus extremities extremity eye
eyeball eyes face facial femoral femur femurs fibula finger fingers fluid foot forearm forefoot fornix fossa frontal
gallbladder gastric gi git gland glands globe globus gluteus gray great grey groin gu gyrus hand hands hcc head
headneck heart hemisphere hepatic hepatis hilum hindfoot hip hippocampal hippocampi hippocampus hips humeral humerus
hypophysis hypothalamus iac ileocecal ileum iliac iliacus iliopsoas ilium inferior infra inguinal inner insula insular
intestine intracranial intraocular ischium ivc jaw jejunum joint joints jugular kidney kidneys knee knees kub la
labrum lacrimal lad larynx lateral lca lcx left leg legs lens lenses ligament limb limbs lip lips liver lobe loin
lower lspine lumbar lumbosacral lung lungs lv lymph lymphatic lymphnode lymphnodes malleolus mandible mandibular
mastoid matter maxilla maxillary maximus medial mediastinal mediastinum medius medulla meninges meniscus mesentery
mesorectum metacarpal metatarsal midbrain middle midfoot minimus mouth muscle muscles myocard myocardium nasal
nasopharynx navel neck nerve nerves nigra node nodes nose nostril nucleus oblongata occipital oesophagus olfactory
optic opticnerve optics oral orbit orbital orbits oropharynx ovaries ovary palate pallidum pallidus pancreas
pancreatic papilla paranasal parathyroid parenchyma parietal parotid parotids patella patellar patellofemoral pelvic
pelvis penile penis perineum periosteum peripheral peritoneal peritoneum petrous phalanges phalanx pharyngeal pharynx
pineal pituitary placenta plantar pleura pleural plexus pons popliteal portal portalvein posterior prostate prostatic
proximal psoas pubis pulmonary putamen pv pylorus ra radius rca rectal rectum rectus renal retina retroperitoneum rib
ribs right root rotator rv sacral sacroiliac sacrum saliva salivary scalp scaphoid scapula sclera scrotum sella
seminal shank shin shoulder shoulders sigmoid sij sinus sinuses skeletal skeleton skin skull sphenoid spheroid spinal
spinalcord spine spleen splenic sternum stomach subclavian subcutaneous submandibular substantia superior supra
suprahyoid suprarenal svc system talus tarsal tarsus teeth temporal tendon testes testicle testis thalamus thigh
thoracic thoraco thoracoabdominal thoracolumbar thorax throat thumb thymus thyroid tibia tibial tissue tlspine tmj tmt
toe toes tongue tonsil tooth torso trachea tract transition transitional trapezius trochanter trunk tspine tube tubes
ulna umbilical upper ureter ureters urethra urinary urogenital uterus uvula vagina vaginal valve vascular vein veins
vena venous ventral ventricle ventricles ventricular vertebra vertebrae vertebral vertex vesicle vesicles vessel
vessels vocal volar vulva white whole wholebody wrist wrists zone
"""

# What is found there.
_FINDINGS = """
abnormal abnormality abscess adenoma air anastomosis aneurysm angioma artifact ascites atelectasis atrophy benign
bleed bleeding calcification calcifications calcium cancer carcinoma cavitation cerclage clot collection consolidation
contusion covid cystic cysts defect diffusion dissection edema effusion embolism embolus emphysema enhancement
enhancing enlarged fat fatty fibroid fibrosis filled fistula focal foci focus foreign fracture fractures gas ggo glass
glioblastoma glioma granuloma ground haematoma haemorrhage healthy hematoma hemorrhage hemorrhagic hepatocellular
hernia hyperintensities hyperintensity hypermetabolic hypodense implant implants infarct infarction infected infection
infiltrate inflammation invasion ischemia ischemic lesion lesions leukoaraiosis lipoma lump lymphoma malignant mass
masses melanoma meningioma metastases metastasis metastatic micronodule necrosis necrotic neoplasm nodule nodules
nonenhancing normal oedema opacities opacity osteoarthritis osteolytic osteophyte penumbra perforation perfusion
peritumoral plaque plaques pneumonia pneumothorax polyp polyps primary prosthesis recurrence recurrent residual
sarcoma scar schwannoma sclerosis secondary seroma stenosis stent stones stroke suspicious swelling tb tear thrombosis
thrombus tumor tumoral tumors tumour tumours ulcer unhealthy vegetation wmh
"""

# How radiotherapy names its structures.
_RADIOTHERAPY = """
avoid avoidance bag boost canal clip clips contour couch ctv dose eval external fiducial field gtv gtvmass gtvn gtvp
gtvt gy hdr hotspot igrt igtv imrt intermediate iso isocenter isodose itv ldr line margin marker markers motion nodal
oar opt optimization organ organs outer pctv pgtv plan planning point prv ptv refpt ring risk roi rois rt sbrt seed
seeds shell simulation srs struct structure structures support surface target targets treatment tumorbed union vmat
vol volume volumes
"""

# How it was taken.
_TECHNIQUE = """
18f 1st 2d 2nd 3d 3rd 4d 68ga ac accupaque acq acquired acquisition adc add administered adult adults agent algo
ammonia amplitude anaesthesia angio angiogram angiography ap apex applied array arthro arthrogram arthrography asc
asir asl attenuation attn auto autopsy average averaged avg ax axial axials b0 b1 b1map baby balanced bariatric barium
baseline basic bb bh biopsy blade blood bold bolus bravo breath breathhold breathing bssfp bw bx c11 caipi calc
calibration cap cardio care carotis cath catheter cbct cbf cbv cc ccta cda cdi cest check chemical child children
cholangio cholangiography choline cine cisctn ciss clariscan clear clinical coarse coil collimation coloncap
colonography colonoscopy color colour combi combined compare comparison complete compressed cone constructive contrast
contrastagent contrasted contrastmedium conventional cor coronal corr correct corrected correction coupled crop
cropped cross csi ct cta ctac ctp cube cups curved cut cxr cycle cystogram cystography dark data dbt dce decubitus
deep default delay delayed denoised density depth derived dess detail diast diastole diastolic dicom diff digital dir
direct display dixon dl dmsa dob dopa doppler dotanoc dotarem dotatate dotatoc double drain drainage drr dsa dsc dsi
dti dtpa dual dualecho duration dw dwi dx dyn dynamic early ecg echo echoes eddy edge edited ee eff elucirem enema
enhanced enteroclysis enterography eovist ep epfid epi epse erect ex exam examination exhale exp expiration expiratory
exposure extended f18 fast fatsat fatsup fb fc fdg fdopa female fes fet fetal ffdm ffe fgatir fgre fieldmap fiesta
fifth film filter filtered fine first five fl flair flash flat flex flexed flexion flip florbetaben florbetapir flow
fluciclovine fluoride fluorine fluoro fluorodeoxyglucose fluoroscopy flutemetamol fmap fmri follow followup fourth fov
frame frames free frfse fs fse fspgr fu full function functional fused fusion ga ga68 gad gadavist gadobenate
gadobutrol gadolinium gadopiclenol gadoterate gadoteric gadoteridol gadovist gadoxetate galactography gastro gated
gating gd gdc ge gen general gr grad gradient grappa gre gre3d grid guidance guided half haste hd hdp helical hi high
hires hrct hs hu hysterosalpingography i123 i131 icc ideal idl image images imaging imeron imr in in111 increment
infant infants inhale inject injection inphase insp inspir inspiration inspiratory intensity intraop intraoperative
intrathecal intravenous inv inverse inversion iodide iodine iodixanol iohexol iomeprol iomeron iopamidol iopamiro
iopromide ioversol ip iq ir irm isotropic isovoxel isovue iv ivim jopamiron kernel kv kvp label labels large last lat
late lateralis lava ldct lge limited linear lo loc local localiser localizer locator long longitudinal loop lossless
low lowdose lr ls lu177 lut m0 maa mag mag3 magn magnevist magnitude male mammo mammogram mammography map mapping maps
mar marking mas mask masks max maximum mb mdp mean measurement mediast medic medium mep merge merged mg mibi mid
midline min mini minimum minip mip mips ml mlo moco mode model molli mono monoenergetic mp mp2rage mpgr mpr mprage
mprs mr mra mrcp mri mrs mrsi mrt mrv mt mtc mtr mtt multi multiband multiecho multihance multiphase multiplanar
multishot multislice myelo myelogram myelography n13 nac naf nativ native nav navi navigator ncct neg negative
neonatal nephro neuro new newborn nex no noac noise non nonattenuation nonce noncon noncontrast none nonfs normalized
not npc ns nsa o15 ob obl oblique obstetric octreotide old omnipaque omniscan one only op operative opp opposed
optiray out outphase overview oxygen p2 p3 pa paediatric page pair parallel parametric part partial pass pat pc pca
pcasl pd pdfs pdw pe ped pediatric peds pelvimetry perf pet petct petmr petmri pf phantom phase phased phases phlebo
phlebography physio pilot pitch pixel plain planar plane planes plus pns polar portable pos position positive post
postcon postcontrast postgad postmortem postop postoperative power pre precision precon precontrast pregad preload
preop preoperative prep preparation preview primovist pro processed prohance proj projection projections prompt prone
propeller prospective protocol proton ps psif psir psma pulse px pyelography qa qc quant quantitative quick quiet r2
r2star radial radiograph radiography random range rapid rare ratio raw rb82 rbc rcbf rcbv real rec recon recons
reconstructed reconstruction reconstructions recovery reduced reduction ref reference reform reformat reformats
reformatted reg registered registration relative relaxation removed repeat repeated res resample resampled resolution
resolve respiratory rest resting restingstate retro retrospective reverse rfmri rl rot rotating rotation routine
rsfmri rubidium run runoff rx sag sagital sagittal sat saturated saturation sb scan scanner scanogram scanogramm scans
scout screen screening se second segment segmentation segmented segments selective semi sense sensitive sensitivity
seq sequence series sestamibi set sharp shift short shot shots sialography side single size sl slab slabs slc slice
slices slow sm small smooth smoothed sms sn soft softtissue software solutrast space spacing spair spatial spc special
spect spectral spectroscopy speed spgr spin spir spiral spoiled spot ss ssd ssfp ssfse sta stack standard standing
star stat state static station stats std steady step stereo stereotactic stir stitched stress strip structural study
sub subtracted subtraction subtractions sum supine supp suppressed suppression surf surgical survey suv suvbw sw
swallow swan swi swip switched syn sync synthetic syst systole systolic t1 t1c t1ce t1gd t1map t1w t1wi t2 t2f t2flair
t2map t2s t2star t2w t2wi ta tac tag tagged tagging task tavi tavr tc99m te technetium temp template ten tensor test
tetrofosmin tfe tfl thallium thick thickness thin third three thrive ti tilt tilted time timed timing tir tirm tl201
tof tomo tomography tomosynthesis topo topogram topograms tr tra trace tracer tracew track tracking trans transaxial
transit transplant transversal transverse trauma trial trig trigger triggered triple true truefisp trufi trufisp tse
tsh tt tta ttp turbo turboflair tw twist two type ultra ultrafast ultrasound ultravist uncorrected unenhanced
unfiltered uni uniform unsat up urethrography urogram urography us ute valsalva vane vasc vb vcg vcug vec velocity
venc venogram venography ventilation vibe view views virtual visipaque vista vnc volumen volumetric vr vrt vueway
water wave wb wbs weight weightbearing weighted wfs wi wide wideband width window windowed wip with without wo wrap xa
xenetix xr xray y90 yes zero zoom zoomed zr89
"""

# Words of coded meanings, glue and letters.
_MEANINGS = """
a algorithm altered anatomic anatomical anatomy and area artificial at automatic b background becquerels between bi
bilateral biochemical both by c category cell cells circulatory class code coded concept connective consensus count
counts d digestive disease disorder e endocrine f feetfirst fibrous finding for foreground from g gastrointestinal
gram grams h headfirst hematopoietic hounsfield humor i identification immune instance integumentary into l liquid
location lt lumen lymphoid m malignancy manual membrane milliliter mixed morphologically multiple musculoskeletal n
neoplasia neoplastic nervous object of on or other over p parameter per physical physiologic predicted prediction
probability procedure property q r re reader recumbent region regional reproductive result s semiautomatic
semirecumbent site sitting solid specimen substance t the through to truth u under unilateral unit units unknown
unspecified upright v versus via vitreous vs w x z
"""

# German, French, Spanish, Italian, Dutch and Portuguese, without accents.
_LANGUAGES = """
arteriel arteriell arterien atemstop atemstopp ausatmung avec axiale axiales bacino baco bassin bauch becken beidseits
bekken blanco blase borst bot brust brustwirbelsaule buik bws cabeca cabeza cadera caviglia cerebro cerveau cervello
cervicale cheville codo coeur collo colonna colonne columna coluna con contraste coracao corazon coronales cotovelo
cou coude coupe coupes crane craneo cranio cuello cuisse cuore darm derecha derecho destra destro direita direito dopo
dorsale droit droite dunn einatmung ellbogen elleboog ellenbogen encefalo enkel epaule esquerda esquerdo fegato figado
foie fruh fuss ganz ganzkorper gauche gebarmutter gefasse gelenk genou gesamt ginocchio gomito hals halswirbelsaule
hanche handgelenk hersenen herz heup higado hirn hombro hoofd hueso hufte huftgelenk hws infekt injecte izquierda
izquierdo jambe joelho kiefer km knie kniegelenk knochen kompl kontrast kontrastmittel kopf koronar leber
lendenwirbelsaule lever liegend links lombaire longen lunge lungen lws magen milz milza mit molles muneca nach nacken
nek niere nieren oberarm oberbauch oberes oberschenkel ohne ombro onko os osso parties pescoco pie pied piede poignet
polmone polmoni pols polso portale portalvenos poumon poumons prostata pulmon pulmones punho quadril rachis rate
rechts rein reins rekonstruktion reni rim rinon rinones rins rodilla sagittale sagittales sans schadel schedel schicht
schichten schilddruse schouder schulter schultergelenk seitlich sem senza serie simple sin sinistra sinistro spalla
spat sprunggelenk stehend tardia tardif tardive testa thorace tobillo torace torax tornozelo tumorbett ubersicht
uebersicht unterarm unterbauch unteres unterschenkel veineuse veineux venen venos voet vor weichteil weichteile
wervelkolom wirbelsaule zonder
"""
# Units: words beside a number only.
_WITH_NUMBERS = """
bq cc cgy cm deg g gy hz kg khz kv kvp m ma mas mbq mci mg mgy mhz min ml mm ms mt s sec t tesla
"""

VOCABULARY = frozenset(" ".join((_ANATOMY, _FINDINGS, _RADIOTHERAPY, _TECHNIQUE, _MEANINGS, _LANGUAGES)).split())

_UNITS = frozenset(_WITH_NUMBERS.split())

_TOKEN = re.compile(r"[^\W_]+")
_PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,2}")
_SETTING = re.compile(r"(b|te|tr|ti|fov)[0-9]{1,4}|[0-9]{1,3}(x[0-9]{1,3}){1,2}(mm)?|[a-z]{1,2}[0-9]{2}[a-z]?")
_LIGATURES = str.maketrans(
    {"ß": "ss", "ø": "o", "æ": "ae", "œ": "oe", "ł": "l", "Ø": "O", "Æ": "AE", "Œ": "OE", "Ł": "L"}
)


@lru_cache(maxsize=4096)
def safe_description(text: str, also: frozenset[str] = frozenset(), without: frozenset[str] = frozenset()) -> str:
    """The harmless words of `text`, in their order and spelling, at most 64 characters; "" where none is left.

    `also` are further words, in lower case, that an installation vouches for: the class names of a recipe, say.
    `without` are words, in lower case, that go even so: the patient's own name.
    """
    found = [(match.group(), text[end : match.start()]) for match, end in _with_gaps(text)]
    kept = ""
    for index, (token, gap) in enumerate(found):
        if token.lower() in without or not _stays(index, found, also):
            continue
        glue = gap[-1] if gap and gap[-1] in "_-./+" else " "
        longer = f"{kept}{glue}{token}" if kept else token
        if len(longer) > LONGEST:
            break
        kept = longer
    return kept


def tokens(text: str) -> frozenset[str]:
    """A text's words in lower case, as `safe_description` is told of further ones."""
    return frozenset(match.group().lower() for match in _TOKEN.finditer(text))


def _with_gaps(text: str) -> Iterator[tuple[re.Match[str], int]]:
    """Each token with the place where the one before it ended."""
    end = 0
    for match in _TOKEN.finditer(text):
        yield match, end
        end = match.end()


def _stays(index: int, found: list[tuple[str, str]], also: Collection[str]) -> bool:
    token = found[index][0]
    if not token.isdecimal():
        return _is_word(token, also)
    before = found[index - 1][0] if index else ""
    after = found[index + 1][0] if index + 1 < len(found) else ""
    if before.isdecimal():
        return _is_decimal(index - 1, found)
    if after.isdecimal():
        return _is_decimal(index, found)
    # A number after a word that goes ("Room 12", "Smith 7") belongs to that word.
    return bool(_NUMBER.fullmatch(token)) and (not before or _is_word(before, also))


def _is_decimal(index: int, found: list[tuple[str, str]]) -> bool:
    """Whether tokens `index` and the next are one decimal number, and no third number stands beside them."""
    alone = (index == 0 or not found[index - 1][0].isdecimal()) and (
        index + 2 >= len(found) or not found[index + 2][0].isdecimal()
    )
    whole, (fraction, point) = found[index][0], found[index + 1]
    return alone and point in (".", ",") and bool(_NUMBER.fullmatch(whole)) and len(fraction) <= 3


def _is_word(token: str, also: Collection[str]) -> bool:
    plain = _plain(token)
    low = plain.lower()
    return low in VOCABULARY or low in also or bool(_SETTING.fullmatch(low)) or _is_compound(plain, also)


def _plain(token: str) -> str:
    """Without accents."""
    decomposed = unicodedata.normalize("NFKD", token.translate(_LIGATURES))
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def _is_compound(token: str, also: Collection[str]) -> bool:
    """Known words written as one, told apart by case and by numbers."""
    parts = _PART.findall(token)
    if "".join(parts) != token or len(parts) < 2:
        return False
    numbers = [part for part in parts if part.isdecimal()]
    words = [part.lower() for part in parts if not part.isdecimal()]
    known = VOCABULARY | _UNITS if numbers else VOCABULARY
    if not words or not all(word in known or word in also for word in words):
        return False
    if not numbers:
        return all(len(word) > 2 for word in words)
    return sum(map(len, numbers)) <= (4 if max(map(len, words)) > 2 else 3)
