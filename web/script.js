'use strict'
// The script of all pages: it calls the JSON API with fetch, writes what comes
// back as text, never as HTML, and keeps nothing in the browser.

const $ = id => document.getElementById(id)
const page = document.body.dataset.page
const isPrivate = $('logout')
let user // whose data this page shows
let lostAt // what had the focus when the session turned out to be gone

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
			headers: {'Content-Type': 'application/json'},
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
// write a next.
function goOn() {
	const next = new URLSearchParams(location.search).get('next')
	return leave(next ? '/auth/continue?next=' + encodeURIComponent(next) : '/')
}

// notice says what is about the whole page, at the window's foot, where it
// moves nothing else.
function notice(kind, ...words) {
	$('notice').className = kind
	$('notice').role = kind ? 'alert' : 'status'
	$('notice').replaceChildren(...words)
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
	say(field, 'You can try again now.')
	field.ariaInvalid = null
}

// onSubmit gives a form places for errors, passwords that can be shown, and one
// request at a time.
function onSubmit(form, work) {
	const button = form.querySelector('[type=submit]')
	const fields = [...form.querySelectorAll('.field > [name]')]
	const secrets = fields.filter(field => field.type === 'password')
	form.noValidate = true // an empty field gets words like any other error
	button.disabled = false
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
		agent.split(/[ /]/)[0] || 'Unknown program') + (system ? ' on ' + system : '')
}

const line = (title, about, ...buttons) => h('li', {},
	h('div', {}, h('strong', {}, ...title), h('div', {className: 'quiet'}, about)), ...buttons)

// small is a button of one item; its label says which.
function small(words, label, work) {
	const button = h('button', {type: 'button', className: 'plain', ariaLabel: label}, words)
	onClick(button, () => work(button.closest('li')))
	return button
}

// end deletes an item and hands the focus on. What is gone already is fine.
async function end(item, path, words) {
	await api('DELETE', path).catch(error => {
		if (error.status !== 404) throw error
	})
	const section = item.closest('ul').parentNode
	const next = item.nextElementSibling || item.previousElementSibling
	item.remove()
	;(next?.querySelector('button') || section.querySelector('[tabindex]')).focus()
	notice('', words)
}

function ringLine(ring) {
	const path = '/ringsofpower/' + ring.id
	const doom = 'Throw ' + ring.name + ' into Mount Doom'
	return line([ring.name], ring.bearer,
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
			item.replaceWith(edit)
			onSubmit(form, async fields => {
				back(await api('PUT', path, fields))
				notice('', fields.name, ' is saved.')
			})
			form.querySelector('input').select()
		}),
		small('Throw', doom, async item => {
			if (await ask(doom + '? It does not come back.', 'Throw it in')) {
				await end(item, path, ring.name + ' is gone.')
			}
		}))
}

function deviceLine(session) {
	const path = '/auth/sessions/' + session.id
	const name = device(session.userAgent)
	const about = [session.remoteAddr, 'seen ' + ago(session.lastSeen), 'logged in ' + day(session.created)].join(' · ')
	return session.current
		? line([name, h('em', {}, 'this device')], about, small('Log out', 'Log out here', async () => {
			await api('DELETE', path)
			return leave('/auth/login')
		}))
		: line([name], about, small('End', 'End ' + name + ', ' + session.remoteAddr,
			item => end(item, path, name + ' is logged out.')))
}

function tokenLine(token) {
	return line([token.name],
		[token.lastUsed ? 'used ' + day(token.lastUsed) : 'not used yet', 'made ' + day(token.created),
			token.expires ? 'works until ' + day(token.expires) : 'works for ever'].join(' · '),
		small('Revoke', 'Revoke ' + token.name, async item => {
			if (await ask('Revoke ' + token.name + '? What uses it stops working.', 'Revoke')) {
				await end(item, '/auth/tokens/' + token.id, token.name + ' is revoked.')
			}
		}))
}

const showDevices = list => $('devices').replaceChildren(...list.sort((a, b) => b.current - a.current).map(deviceLine))

const pages = {
	login() {
		onSubmit($('login'), async fields => {
			await api('POST', '/auth/session', fields)
			return goOn()
		})
	},

	async invite() {
		const path = '/auth/invites/' + encodeURIComponent(location.hash.slice(1))
		const {username, password} = $('invite').elements
		addEventListener('hashchange', () => location.reload()) // another link
		try {
			const invite = await api('GET', path)
			username.value = invite.username
			username.readOnly = invite.username
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
			await api('POST', path, username.readOnly ? {password: fields.password} : fields)
			return goOn()
		})
		return username.readOnly ? password : username
	},

	async rings() {
		$('rings').append(...(await api('GET', '/ringsofpower')).map(ringLine))
		onSubmit($('add'), async fields => {
			$('rings').append(ringLine(await api('POST', '/ringsofpower', fields)))
			$('add').reset()
			$('name').focus()
			notice('', fields.name, ' is added.')
		})
	},

	async account() {
		showDevices(await api('GET', '/auth/sessions'))
		$('tokens').append(...(await api('GET', '/auth/tokens')).map(tokenLine))
		onClick($('end-all'), async () => {
			if (!await ask('Log out on every device, this one too?', 'Log out everywhere')) return
			await api('DELETE', '/auth/sessions')
			return leave('/auth/login')
		})
		const form = $('password')
		form.username.defaultValue = user
		onSubmit(form, async fields => {
			await api('PUT', '/auth/password', {current: fields.current, new: fields.new})
			form.reset()
			notice('', 'Your password is changed.')
			showDevices(await api('GET', '/auth/sessions'))
		})
		const secret = $('secret')
		onSubmit($('token'), async ({name, days}) => {
			const expires = days ? new Date(Date.now() + days * 864e5) : undefined
			const token = await api('POST', '/auth/tokens', {name, expires})
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
	try {
		if (isPrivate) {
			onClick($('logout'), async () => {
				await api('DELETE', '/auth/session')
				return leave('/auth/login')
			})
			user = $('who').textContent = (await api('GET', '/auth/session')).username
		}
		focus = await pages[page]()
	} catch (error) {
		if (error.status === 401) return leave(loginURL())
		return notice('bad', error.message, ' ', h('a', {href: ''}, 'Try again'))
	}
	$('wait')?.remove()
	$('page').hidden = false
	focus?.focus()
}
start()
