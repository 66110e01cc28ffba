'use strict'
// The script of all pages: it calls the JSON API with fetch, writes what comes
// back as text, never as HTML, and keeps nothing in the browser.

const $ = id => document.getElementById(id)
const page = document.body.dataset.page
const isPrivate = $('logout')
let user // whose data this page shows
let lostAt // what had the focus when the session turned out to be gone
let proof = '' // that the person was here a moment ago; see proven

function h(tag, props, ...children) {
	const element = Object.assign(document.createElement(tag), props)
	element.append(...children)
	return element
}

// api gives the reply's data, or throws the API's own words with the status and
// the seconds to wait.
async function api(method, path, body) {
	let reply, json
	try {
		reply = await fetch(path, {
			method,
			headers: {'Content-Type': 'application/json', 'Ringward-Proof': proof},
			body: JSON.stringify(body),
		})
		if (reply.status === 204) return
		json = await reply.json()
	} catch {
		json = {}
	}
	if (reply?.ok && json.data) return json.data
	const words = json.errors?.map(e => e.detail ? e.title + ': ' + e.detail : e.title).join('. ')
	throw Object.assign(new Error(words || 'The server does not answer. Try again soon.'),
		{status: reply?.status, wait: reply?.headers.get('Retry-After')})
}

// leave keeps the button that led away busy until the next page is there.
const leave = url => new Promise(() => location.replace(url))
const loginURL = () => '/auth/login?next=' + encodeURIComponent(location.pathname + location.search)

// goOn leads to the page that was asked for, if the server lets it: anybody can
// write a next. Its fragment never went to the server.
async function goOn() {
	await api('GET', '/auth/session').catch(cookieLost)
	const next = new URLSearchParams(location.search).get('next')
	return leave(next ? '/auth/continue?next=' + encodeURIComponent(next) + (page === 'login' ? location.hash : '') : '/')
}

// cookieLost is when the server has just logged somebody in and does not know
// them any more.
function cookieLost(error) {
	if (error.status !== 401) return
	const there = document.body.dataset.public
	throw new Error('The password is right, but this browser did not keep the cookie. ' + (
		there && there !== location.origin ? 'Open ' + there + ' instead.'
		: error.message.includes('several') ? error.message.replace('Login required: t', 'T') + '.'
		: location.protocol === 'http:' ? 'Over http it keeps none that is for https: ask whoever runs this server for its https address.'
		: 'Allow cookies for this site, and try again.'))
}

// notice says what is about the whole page, at the window's foot, where it
// moves nothing else. Good news goes by itself.
let noticeEnds
function notice(kind, ...words) {
	clearTimeout(noticeEnds)
	$('notice').className = kind
	$('notice').role = kind ? 'alert' : 'status'
	$('notice').replaceChildren(...words)
	if (!words.length) return
	$('notice').append(h('button', {type: 'button', className: 'plain close', ariaLabel: 'Close', onclick: () => notice('')}))
	if (!kind) noticeEnds = setTimeout(notice, 8000, '')
}

function trouble(error) {
	if (error.status !== 401 || !isPrivate) return notice('bad', error.message)
	const link = h('a', {href: loginURL(), target: '_blank'}, 'Log in in a new tab')
	lostAt ??= document.activeElement
	notice('bad', 'Your session has ended, nothing was changed. What you typed is still here. ', link, ', then try again.')
	link.focus()
}

// Back from that login, the page says that work can go on.
addEventListener('focus', () => lostAt && api('GET', '/auth/session').then(session => {
	if (session.username !== user) return location.reload()
	lostAt.focus()
	lostAt = null
	notice('', 'You are logged in again.')
}, () => {}))

async function press(button, work, failed = trouble) {
	if (button.ariaDisabled) return
	const label = button.textContent
	button.ariaDisabled = 'true' // disabled would lose the focus
	button.textContent = button.dataset.busy || label
	notice('')
	try {
		await work()
		lostAt = null
	} catch (error) {
		await failed(error)
	}
	button.textContent = label
	button.ariaDisabled = null
}

const onClick = (button, work) => button.addEventListener('click', () => press(button, work))

// say puts words beside a field; without words it takes them away.
function say(field, ...words) {
	$(field.id + '-error').replaceChildren(...words)
	field.ariaInvalid = words.length ? 'true' : null
}

// countdown runs on the button; a screen reader hears it once.
async function countdown(button, field, words, seconds) {
	const end = Date.now() + seconds * 1000
	say(field, words, h('span', {className: 'sr'}, '. Wait ' + seconds + ' seconds.'))
	for (let left = seconds; left > 0; left = Math.ceil((end - Date.now()) / 1000)) {
		button.textContent = 'Wait ' + (left < 60 ? '' : Math.floor(left / 60) + ' min ') + left % 60 + ' s'
		await new Promise(done => setTimeout(done, 200))
	}
	say(field, h('span', {className: 'quiet'}, 'You can try again now.'))
	field.ariaInvalid = null
}

// onSubmit gives a form places for errors, passwords that can be shown, and one
// request at a time.
function onSubmit(form, work) {
	const button = form.querySelector('[type=submit]')
	const fields = [...form.querySelectorAll('.field > [name]')]
	const secrets = fields.filter(field => field.type === 'password')
	form.noValidate = true // an empty field gets words like any other error
	for (const field of fields) {
		const id = field.id + '-error'
		field.after(h('span', {id, className: 'error', role: 'alert'}))
		field.setAttribute('aria-describedby', id + ' ' + (field.getAttribute('aria-describedby') || ''))
	}
	for (const field of secrets) {
		const eye = h('button', {type: 'button', className: 'eye'})
		field.show = shown => {
			field.type = shown ? 'text' : 'password'
			eye.textContent = shown ? 'Hide' : 'Show'
			eye.ariaLabel = eye.textContent + ' ' + field.labels[0].textContent.toLowerCase()
		}
		field.show(false)
		eye.onclick = () => field.show(field.type === 'password')
		field.after(eye)
	}
	const stop = (field, words) => {
		say(field, words)
		field.focus()
		field.select?.()
	}
	form.addEventListener('submit', event => {
		event.preventDefault()
		if (button.ariaDisabled) return
		fields.forEach(field => say(field))
		const empty = fields.find(field => field.required && !field.value)
		if (empty) return stop(empty, empty.labels[0].textContent + ' is missing.')
		secrets.forEach(field => field.show(false))
		press(button, () => work(Object.fromEntries(new FormData(form))), error => {
			if (error === cancelled) return
			if (!error.status || error.status === 401 && isPrivate) return trouble(error)
			// A broken rule stands by the field that it names first, or by the
			// last; all else is about the password, or the first field.
			const at = field => (error.message.toLowerCase() + field.name).indexOf(field.name)
			const field = error.status === 422
				? fields.reduce((a, b) => at(b) <= at(a) ? b : a)
				: secrets[0] || fields[0]
			stop(field, error.message)
			if (error.wait) return countdown(button, field, error.message, error.wait)
		})
	})
}

const cancelled = new Error('cancelled')

// proven does what needs a proof that the person is here, and asks for the
// password where there is none or it is too old. The proof is in this page's
// memory only.
async function proven(work) {
	try {
		return await work()
	} catch (error) {
		if (error.status !== 403 || !error.message.startsWith('Confirm')) throw error
	}
	const form = $('confirm').content.firstElementChild.cloneNode(true)
	const dialog = h('dialog', {ariaLabel: 'Confirm that it is you'}, form)
	form.append(' ', h('button', {type: 'button', className: 'plain', onclick: () => dialog.close()}, 'Cancel'))
	form.username.defaultValue = user
	document.body.append(dialog)
	onSubmit(form, async ({password}) => {
		proof = (await api('POST', '/auth/confirm', {password})).proof
		dialog.close()
	})
	const key = form.querySelector('[data-passkey]')
	key.hidden = !$('passkeys').children.length || !passkeysWork()
	onClick(key, async () => {
		const answer = await passkeyAnswer().catch(error => { if (error !== cancelled) throw error })
		if (!answer) return
		proof = (await api('POST', '/auth/confirm', answer)).proof
		dialog.close()
	})
	dialog.showModal()
	form.querySelector('[type=password]').focus()
	proof = ''
	await new Promise(done => dialog.onclose = done)
	dialog.remove()
	if (!proof) throw cancelled
	return work()
}

// ask comes before what cannot be undone.
function ask(words, yes) {
	const dialog = h('dialog', {ariaLabel: words}, h('form', {method: 'dialog'}, h('p', {}, words),
		h('button', {value: yes, className: 'danger'}, yes),
		h('button', {className: 'plain', autofocus: true}, 'Cancel')))
	document.body.append(dialog)
	dialog.showModal()
	return new Promise(done => dialog.onclose = () => {
		dialog.remove()
		done(dialog.returnValue)
	})
}

const day = iso => new Date(iso).toLocaleDateString('en-GB', {dateStyle: 'medium'})
const time = iso => new Date(iso).toLocaleString('en-GB', {dateStyle: 'medium', timeStyle: 'short'})
const bdi = text => h('bdi', {}, text) // a name that runs from right to left turns nothing else round

function ago(iso) {
	const minutes = Math.floor((Date.now() - new Date(iso)) / 6e4)
	return minutes < 2 ? 'now'
		: minutes < 120 ? minutes + ' minutes ago'
		: minutes < 2880 ? (minutes / 60).toFixed() + ' hours ago' : day(iso)
}

// device says a User-Agent in words. Order counts: most name others too.
function device(agent) {
	const named = list => list.split(' ').map(word => word.split(':')).find(word => agent.includes(word[0]))?.at(-1)
	const system = named('iPhone iPad Android Windows Mac CrOS:ChromeOS Linux')
	return (named('Edg:Edge OPR:Opera Firefox FxiOS:Firefox Chrome CriOS:Chrome Safari') ||
		agent.split(/[ /]/)[0].slice(0, 40) || 'Unknown program') + (system ? ' on ' + system : '')
}

const line = (title, about, ...buttons) => h('li', {},
	h('div', {}, h('strong', {}, ...title), h('div', {className: 'quiet'}, about)), ...buttons)

// small is a button of one item; its label says which.
function small(words, label, work, kind = 'plain') {
	const button = h('button', {type: 'button', className: kind, ariaLabel: label}, words)
	onClick(button, () => work(button.closest('li')))
	return button
}

// end deletes an item and hands the focus on. What is gone already is fine.
async function end(item, path, ...words) {
	await api('DELETE', path).catch(error => {
		if (error.status !== 404) throw error
	})
	const section = item.closest('ul').parentNode
	const next = item.nextElementSibling || item.previousElementSibling
	item.remove()
	;(next?.querySelector('button') || section.querySelector('[tabindex]')).focus()
	notice('', ...words)
}

function ringLine(ring) {
	const path = '/ringsofpower/' + ring.id
	const doom = 'Throw ' + ring.name + ' into Mount Doom'
	return line([bdi(ring.name)], bdi(ring.bearer),
		small('Change', 'Change ' + ring.name, item => {
			const form = $('edit').content.firstElementChild.cloneNode(true)
			for (const field of form.querySelectorAll('input')) {
				field.previousElementSibling.htmlFor = field.id += ring.id
				field.value = ring[field.name]
			}
			const edit = h('li', {}, form)
			const back = ring => {
				const fresh = ringLine(ring)
				edit.replaceWith(fresh)
				fresh.querySelector('button').focus()
			}
			form.append(small('Cancel', 'Cancel', () => back(ring)))
			form.onkeydown = event => event.key === 'Escape' && back(ring)
			item.replaceWith(edit)
			onSubmit(form, async fields => {
				back(await api('PUT', path, fields))
				notice('', bdi(fields.name), ' is saved.')
			})
			form.querySelector('input').select()
		}),
		small('Throw', doom, async item => {
			if (await ask(doom + '? It does not come back.', 'Throw it in')) {
				await end(item, path, bdi(ring.name), ' is gone.')
			}
		}, 'plain danger'))
}

function deviceLine(session) {
	const path = '/auth/sessions/' + session.id
	const name = device(session.userAgent)
	const about = [session.remoteAddr, 'seen ' + ago(session.lastSeen), 'logged in ' + time(session.created)].join(' · ')
	const item = session.current
		? line([h('span', {}, name), h('em', {}, 'this device')], about, small('Log out', 'Log out here', async () => {
			await api('DELETE', path)
			return leave('/auth/login?out')
		}))
		: line([name], about, small('Log out', 'Log out ' + name + ', ' + session.remoteAddr,
			item => end(item, path, name + ' is logged out.').then(showOthers)))
	item.session = session
	return item
}

function tokenLine(token) {
	return line([bdi(token.name)],
		[token.lastUsed ? 'used ' + day(token.lastUsed) : 'not used yet', 'made ' + day(token.created),
			token.expires ? 'expires ' + day(token.expires) : 'never expires'].join(' · '),
		small('Revoke', 'Revoke ' + token.name, async item => {
			if (await ask('Revoke ' + token.name + '? What uses it stops working.', 'Revoke')) {
				await end(item, '/auth/tokens/' + token.id, bdi(token.name), ' is revoked.')
			}
		}))
}

// showDevices has this one first, then the newest, and few at a time.
function showDevices(list) {
	const newest = list.sort((a, b) => b.current - a.current || b.created.localeCompare(a.created)).map(deviceLine)
	newest.slice(10).forEach(item => item.hidden = true)
	$('devices').replaceChildren(...newest)
	showOthers()
}

function showOthers() {
	const items = [...$('devices').children]
	$('end-others').hidden = items.length < 2
	const hidden = items.filter(item => item.hidden)
	$('more').hidden = !hidden.length
	$('more').textContent = 'Show ' + hidden.length + ' more'
	$('more').onclick = () => {
		hidden.forEach(item => item.hidden = false)
		showOthers()
		hidden[0].querySelector('button').focus()
	}
}

// The second factor.

// loggedIn goes on after a login, or to the step that it is pending on.
async function loggedIn({pending, enrol, passkey}) {
	if (passkey) {
		$('invite').hidden = true
		$('title').textContent = 'Your password is set'
		$('about').replaceChildren('You log in with your passkey. ', h('a', {href: '/auth/login'}, 'Go to the login'))
		return $('title').focus()
	}
	if (!pending) return goOn()
	for (const id of ['why', 'lost', 'login', 'invite', 'about']) if ($(id)) $(id).hidden = true
	if (enrol) {
		document.querySelector('h1').textContent = 'Set up a second factor'
		return setUpApp(await api('POST', '/auth/totp', {pending}), pending, goOn)
	}
	if (page === 'invite') return leave('/auth/login') // the password is set: log in with both
	const form = $('code-form')
	form.hidden = false
	onSubmit(form, async ({code}) => {
		await api('POST', '/auth/session/code', {pending, code})
		return goOn()
	})
	form.code.focus()
	form.code.oninput = () => /^ *\d{3} ?\d{3} *$/.test(form.code.value) && form.requestSubmit()
	$('recover').onclick = () => {
		$('recover').hidden = true
		say(form.code)
		form.code.labels[0].textContent = 'Recovery code'
		$('code-hint').textContent = 'One of those that you were shown when you set up your app.'
		Object.assign(form.code, {value: '', oninput: null, inputMode: 'text', autocomplete: 'off'})
		form.code.focus()
	}
}

// setUpApp shows what an app has to know, takes its first code, and shows the
// recovery codes.
function setUpApp({secret, uri, qr}, pending, then) {
	const offer = $('app-offer').content.firstElementChild.cloneNode(true)
	const size = qr.length + 8
	const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg')
	const path = document.createElementNS(svg.namespaceURI, 'path')
	svg.setAttribute('viewBox', '0 0 ' + size + ' ' + size)
	svg.setAttribute('role', 'img')
	svg.setAttribute('aria-label', 'QR code')
	path.setAttribute('d', qr.flatMap((row, y) => [...row.matchAll(/1+/g)].map(run =>
		'M' + (run.index + 4) + ' ' + (y + 4) + 'h' + run[0].length + 'v1h-' + run[0].length + 'z')).join(''))
	svg.append(path)
	offer.querySelector('.qr').append(svg)
	offer.querySelector('code').textContent = secret.replace(/.{4}(?=.)/g, '$& ')
	$('app').replaceChildren(offer)
	$('app').hidden = false
	const form = offer.querySelector('form')
	onSubmit(form, async ({code}) => {
		const body = pending ? {pending, code} : {code}
		const {recoveryCodes} = await (pending ? api('PUT', '/auth/totp', body) : proven(() => api('PUT', '/auth/totp', body)))
		showCodes(recoveryCodes, then)
	})
	form.querySelector('.plain').onclick = () => {
		if (pending) return location.reload()
		$('app').hidden = true
		$('app-set').focus()
	}
	form.code.focus()
}

function showCodes(codes, then) {
	const view = $('app-codes').content.firstElementChild.cloneNode(true)
	view.querySelector('ol').append(...codes.map(code => h('li', {}, h('code', {}, code))))
	const text = codes.join('\n') + '\n'
	const act = {
		copy() {
			const area = h('textarea', {value: text, className: 'sr'})
			view.append(area)
			area.select()
			notice('', document.execCommand('copy') ? 'Copied.' : 'Copy them by hand.')
			area.remove()
		},
		save() {
			const link = h('a', {href: URL.createObjectURL(new Blob([text])), download: 'recovery-codes.txt'})
			link.click()
			URL.revokeObjectURL(link.href)
		},
		print() { print() },
		done() {
			$('app').hidden = true
			$('app').replaceChildren()
			return then()
		},
	}
	for (const button of view.querySelectorAll('[data-do]')) onClick(button, async () => act[button.dataset.do]())
	$('app').replaceChildren(view)
	$('app').hidden = false
	view.querySelector('h2').focus()
}

const bytes = text => Uint8Array.from(atob(text.replace(/-/g, '+').replace(/_/g, '/')), c => c.charCodeAt())
const text64 = buffer => btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, '-').replace(/\//g, '_').replace(/=+$/, '')

// passkeyTrouble says why a browser's own dialog came to nothing; to close it
// is no error.
const passkeyTrouble = error => {
	if (error.name === 'NotAllowedError' || error.name === 'AbortError') throw cancelled
	if (error.name === 'InvalidStateError') throw new Error('This device has a passkey here already.')
	throw error
}

// passkeyAnswer asks the browser; mediation is 'conditional' for autofill.
async function passkeyAnswer(mediation, signal) {
	const {challenge, rpId, timeout} = await api('POST', '/auth/passkey/options')
	const {rawId, response} = await navigator.credentials.get({mediation, signal,
		publicKey: {challenge: bytes(challenge), rpId, timeout, userVerification: 'required'}}).catch(passkeyTrouble)
	return {id: text64(rawId), clientDataJSON: text64(response.clientDataJSON),
		authenticatorData: text64(response.authenticatorData), signature: text64(response.signature)}
}

async function newPasskey(name) {
	const {challenge, rpId, timeout, userId, username, exclude = []} = await proven(() => api('POST', '/auth/passkeys/options'))
	const {rawId, response} = await navigator.credentials.create({publicKey: {
		challenge: bytes(challenge), timeout, attestation: 'none', rp: {id: rpId, name: document.querySelector('.mark span').textContent},
		user: {id: bytes(userId), name: username, displayName: username},
		pubKeyCredParams: [-7, -8, -257].map(alg => ({type: 'public-key', alg})),
		authenticatorSelection: {residentKey: 'required', requireResidentKey: true, userVerification: 'required'},
		excludeCredentials: exclude.map(id => ({type: 'public-key', id: bytes(id)})),
	}}).catch(passkeyTrouble)
	return proven(() => api('POST', '/auth/passkeys', {name, id: text64(rawId), clientDataJSON: text64(response.clientDataJSON),
		authenticatorData: text64(response.getAuthenticatorData()), publicKey: text64(response.getPublicKey())}))
}

// passkeysWork says whether they do at this address: the server takes them from
// its public one only, if it has one.
const passkeysWork = () => !!window.PublicKeyCredential && isSecureContext && !/^[\d.]+$|^\[/.test(location.hostname) &&
	(document.body.dataset.public || location.origin) === location.origin

function passkeyLine(passkey) {
	return line([bdi(passkey.name)],
		[passkey.lastUsed ? 'used ' + day(passkey.lastUsed) : 'not used yet', 'made ' + day(passkey.created)].join(' · '),
		small('Remove', 'Remove ' + passkey.name, async item => {
			if (await ask('Remove ' + passkey.name + '? It no longer logs you in.', 'Remove')) {
				await proven(() => end(item, '/auth/passkeys/' + passkey.id, bdi(passkey.name), ' is removed.'))
			}
		}))
}

async function showFactors() {
	const {totp, recoveryCodes, passkeys} = await api('GET', '/auth/factors')
	$('app-is').textContent = totp
		? 'An authenticator app is set up since ' + day(totp.created) + '. ' + recoveryCodes + (recoveryCodes === 1 ? ' recovery code is left.' : ' recovery codes are left.')
		: 'A code of an app on your phone, asked for after the password.'
	$('app-set').textContent = totp ? 'Set up another app' : 'Set up an authenticator app'
	$('codes-new').hidden = $('app-remove').hidden = !totp
	$('passkeys').replaceChildren(...passkeys.map(passkeyLine))
}

async function loginByPasskey(mediation, signal) {
	await api('POST', '/auth/passkey', await passkeyAnswer(mediation, signal))
	return goOn()
}

// offerPasskeys has the browser offer them in the name's field, and on a button.
async function offerPasskeys() {
	const button = $('passkey')
	const there = document.body.dataset.public
	if (there && there !== location.origin) {
		const next = new URL(new URLSearchParams(location.search).get('next') || '/', location.origin)
		button.after(h('p', {}, h('a', {href: there + '/auth/login?next=' + encodeURIComponent(next)}, 'Log in with a passkey')))
	}
	if (!passkeysWork()) return
	let waiting
	button.hidden = false
	onClick(button, () => {
		waiting?.abort()
		return loginByPasskey().catch(error => { if (error !== cancelled) throw error })
	})
	while (await PublicKeyCredential.isConditionalMediationAvailable?.()) {
		let old = false
		waiting = new AbortController()
		const renew = setTimeout(() => { // before the challenge is too old
			old = true
			waiting.abort()
		}, 4 * 6e4)
		try {
			return await loginByPasskey('conditional', waiting.signal)
		} catch (error) {
			if (error !== cancelled) trouble(error)
			if (!old) return
		} finally {
			clearTimeout(renew)
		}
	}
}

const pages = {
	login() {
		onSubmit($('login'), async ({username, password}) => {
			$('failed').textContent = ''
			return loggedIn(await api('POST', '/auth/session', {username: username.trim(), password})) // phones type a space after a word
		})
		offerPasskeys().catch(trouble)
	},

	async invite() {
		const path = '/auth/invites/' + encodeURIComponent(location.hash.slice(1))
		const {username, password} = $('invite').elements
		addEventListener('hashchange', () => location.reload()) // another link
		try {
			const invite = await api('GET', path)
			username.value = invite.username
			username.readOnly = invite.username
			$('name-hint').hidden = invite.username
			$('about').textContent = invite.username
				? 'This link works once, until ' + day(invite.expires) + '.'
				: 'You are the first here: choose your name as well.'
		} catch (error) {
			if (error.status !== 404) throw error
			$('invite').hidden = true
			$('title').textContent = 'This link does not work'
			$('about').textContent = 'It was used, is too old, or lost a part on its way. Ask whoever runs this server for a new one.'
			return $('title')
		}
		onSubmit($('invite'), async fields => {
			const {password} = fields
			return loggedIn(await api('POST', path, username.readOnly ? {password} : {username: fields.username.trim(), password}))
		})
		return username.readOnly ? password : username
	},

	async rings() {
		$('rings').append(...(await api('GET', '/ringsofpower')).map(ringLine))
		onSubmit($('add'), async fields => {
			$('rings').append(ringLine(await api('POST', '/ringsofpower', fields)))
			$('add').reset()
			$('name').focus()
			notice('', bdi(fields.name), ' is added.')
		})
	},

	async account() {
		showDevices(await api('GET', '/auth/sessions'))
		$('tokens').append(...(await api('GET', '/auth/tokens')).map(tokenLine))
		await showFactors()
		const quietly = work => () => work().catch(error => { if (error !== cancelled) throw error })
		onClick($('app-set'), quietly(async () => setUpApp(await proven(() => api('POST', '/auth/totp')), '', async () => {
			await showFactors()
			showDevices(await api('GET', '/auth/sessions'))
			$('app-set').focus()
		})))
		onClick($('codes-new'), quietly(async () => {
			if (!await ask('Make new recovery codes? The old ones stop working.', 'Make new ones')) return
			showCodes((await proven(() => api('POST', '/auth/recovery-codes'))).recoveryCodes, showFactors)
		}))
		onClick($('app-remove'), quietly(async () => {
			if (!await ask('Remove the authenticator app? The password alone logs you in then.', 'Remove')) return
			await proven(() => api('DELETE', '/auth/totp'))
			await showFactors()
			notice('', 'The authenticator app is removed.')
		}))
		if (!passkeysWork()) {
			$('passkey').hidden = true
			$('no-passkeys').hidden = false
			$('no-passkeys').textContent = 'This browser has no passkeys at this address. Open ' + document.body.dataset.passkeys + ' to add one.'
		}
		onSubmit($('passkey'), async ({name}) => {
			await newPasskey(name)
			$('passkey').reset()
			await showFactors()
			notice('', bdi(name), ' is added.')
		})
		onClick($('end-all'), async () => {
			if (!await ask('Log out on every device, this one too?', 'Log out everywhere')) return
			await api('DELETE', '/auth/sessions')
			return leave('/auth/login?out')
		})
		onClick($('end-others'), async () => {
			const others = [...$('devices').children].filter(item => !item.session.current)
			if (!await ask('Log out on ' + (others.length === 1 ? 'the other device' : others.length + ' other devices') + '?', 'Log out')) return
			for (const {session} of others) {
				await api('DELETE', '/auth/sessions/' + session.id).catch(error => {
					if (error.status !== 404) throw error
				})
			}
			showDevices(await api('GET', '/auth/sessions'))
			notice('', 'The other devices are logged out.')
		})
		const form = $('password')
		form.username.defaultValue = user
		onSubmit(form, async fields => {
			await api('PUT', '/auth/password', {current: fields.current, new: fields.new})
			form.reset()
			proof = ''
			notice('', 'Your password is changed.')
			showDevices(await api('GET', '/auth/sessions'))
		})
		const secret = $('secret')
		onSubmit($('token'), async ({name, days}) => {
			const expires = days ? new Date(Date.now() + days * 864e5) : undefined
			const token = await proven(() => api('POST', '/auth/tokens', {name, expires}))
			$('tokens').append(tokenLine(token))
			$('token').reset()
			secret.value = token.token
			$('made').hidden = false
			secret.select()
		})
		onClick($('copy'), () => {
			secret.select()
			// navigator.clipboard would need https.
			notice('', document.execCommand('copy') ? 'Copied.' : 'The token is selected: copy it by hand.')
		})
		onClick($('done'), () => {
			$('made').hidden = true
			secret.value = ''
			$('name').focus()
		})
	},
}

// A page that Back brings is empty and asks anew: nobody reads on after a logout.
addEventListener('pagehide', () => document.body.hidden = true)
addEventListener('pageshow', event => event.persisted && location.reload())

async function start() {
	let focus
	if ($('wait')) $('wait').hidden = false
	try {
		if (isPrivate) {
			onClick($('logout'), async () => {
				await api('DELETE', '/auth/session')
				return leave('/auth/login?out')
			})
			user = $('who').textContent = (await api('GET', '/auth/session')).username
		}
		focus = await pages[page]()
	} catch (error) {
		if (error.status === 401) return leave(loginURL())
		$('wait')?.remove()
		return notice('bad', error.message, ' ', h('a', {href: ''}, 'Try again'))
	}
	$('wait')?.remove()
	$('page').hidden = false
	focus?.focus()
}
start()
